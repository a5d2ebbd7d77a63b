import multiprocessing
import os
import resource
import time
from collections.abc import Callable
from multiprocessing.context import ForkServerContext
from multiprocessing.queues import Queue
from multiprocessing.synchronize import Barrier, Event
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from tests.checkout import SHARED
from tests.trainables.images.writers import Png, WriteFolders, WriteParquet
from trainables.errors import InputError
from trainables.images import decode, store
from trainables.images.catalog import RawImage
from trainables.images.decode import decode_square
from trainables.images.store import Split, open_store
from trainables.images.tasks import TaskSource, inspect

TEN_EACH = [0, 1] * 10
DATA = SHARED / "data"


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def source(folder: Path | str, **options: Any) -> TaskSource:
    return TaskSource(source=str(folder), **options)


def values_of(split: Split) -> list[int]:
    """The grey value of every image, by which its writer marked it."""
    values: list[int] = split.images[:, 0, 0, 0].tolist()
    return values


def stores_in(cache: Path) -> list[str]:
    return sorted(path.name for path in cache.iterdir() if path.is_dir())


def test_images_keep_their_labels(write_parquet: WriteParquet, cache: Path) -> None:
    folder = write_parquet(TEN_EACH)
    opened = open_store(source(folder), resolution=6, cache_dir=cache)
    assert opened.class_names == ("cat", "dog")
    assert opened.resolution == 6
    assert list(opened.splits) == ["train", "validation", "devtest", "test"]
    seen: list[int] = []
    for split in opened.splits.values():
        assert split.images.shape == (len(split), 3, 6, 6)
        assert split.images.dtype == torch.uint8
        assert split.labels.dtype == torch.int64
        assert split.labels.tolist() == [value % 2 for value in values_of(split)]
        assert (split.images == split.images[:, :1, :1, :1]).all()
        seen += values_of(split)
    assert sorted(seen) == list(range(20))


def test_the_summary_tells_what_the_store_holds(write_parquet: WriteParquet, cache: Path) -> None:
    write_parquet([0, 1, 1] * 10)
    task = source(write_parquet(TEN_EACH, name="test.parquet"), max_train_images=7)
    splits = open_store(task, resolution=4, cache_dir=cache).splits
    for name, counts in inspect(task).class_counts.items():
        assert torch.bincount(splits[name].labels).tolist() == list(counts.values())
    assert {name: len(split) for name, split in splits.items()} == inspect(task).images


def test_kept_classes_and_samples_across_row_groups(
    write_parquet: WriteParquet, cache: Path
) -> None:
    folder = write_parquet([0, 1, 2] * 20, names=("cat", "dog", "cow"), row_group_size=7)
    task = source(folder, classes=("cow", "cat"), max_train_images=9)
    splits = open_store(task, resolution=4, cache_dir=cache).splits
    assert len(splits["train"]) == 9
    for split in splits.values():
        assert split.labels.tolist() == [{2: 0, 0: 1}[value % 3] for value in values_of(split)]


def test_class_folders_open(write_folders: WriteFolders, cache: Path) -> None:
    splits = open_store(
        source(write_folders({"a": 10, "b": 10})), resolution=4, cache_dir=cache
    ).splits
    for split in splits.values():
        assert split.labels.tolist() == [value // 40 for value in values_of(split)]


@pytest.mark.parametrize("absolute", [True, False])
def test_images_may_lie_in_the_tasks_folder(
    write_parquet: WriteParquet, cache: Path, png: Png, *, absolute: bool
) -> None:
    folder = write_parquet(TEN_EACH)
    (folder / "images").mkdir()
    (folder / "images" / "far.png").write_bytes(png(99))
    path = f"{folder}/images/far.png" if absolute else "images/far.png"
    write_parquet(TEN_EACH, images=[{"bytes": None, "path": path}] * 20)
    opened = open_store(source(folder), resolution=4, cache_dir=cache)
    assert set(values_of(opened.splits["train"])) == {99}


def _absolute(outside: Path, folder: Path) -> str:
    return str(outside)


def _climbing(outside: Path, folder: Path) -> str:
    return f"../{outside.name}"


def _linked(outside: Path, folder: Path) -> str:
    (folder / "inside.png").symlink_to(outside)
    return "inside.png"


@pytest.mark.parametrize("way", [_absolute, _climbing, _linked])
def test_a_table_reads_no_file_outside_the_tasks_folder(
    write_parquet: WriteParquet,
    tmp_path: Path,
    cache: Path,
    png: Png,
    way: Callable[[Path, Path], str],
) -> None:
    (tmp_path / "secret.png").write_bytes(png(99))
    folder = write_parquet(TEN_EACH)
    images = [{"bytes": None, "path": way(tmp_path / "secret.png", folder)}] * 20
    write_parquet(TEN_EACH, images=images)
    with pytest.raises(InputError, match="leads out of the task's folder"):
        open_store(source(folder), resolution=4, cache_dir=cache)


def test_digits_span_the_whole_range(cache: Path) -> None:
    train = open_store(source("digits"), resolution=8, cache_dir=cache).splits["train"]
    assert (int(train.images.min()), int(train.images.max())) == (0, 255)


def test_a_second_opening_decodes_nothing(write_parquet: WriteParquet, cache: Path) -> None:
    folder = write_parquet(TEN_EACH)
    first = open_store(source(folder), resolution=6, cache_dir=cache)
    path = folder / "train.parquet"
    status = path.stat()
    path.write_bytes(bytes(status.st_size))  # nothing could be read from it any more
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    second = open_store(source(folder), resolution=6, cache_dir=cache)
    assert torch.equal(first.splits["train"].images, second.splits["train"].images)


def test_writing_to_the_images_reaches_no_one_else(
    write_parquet: WriteParquet, cache: Path
) -> None:
    folder = write_parquet(TEN_EACH)
    mine = open_store(source(folder), resolution=6, cache_dir=cache).splits["train"]
    before = values_of(mine)
    mine.images.fill_(7)
    other = open_store(source(folder), resolution=6, cache_dir=cache).splits["train"]
    assert values_of(other) == before


def test_a_store_for_whatever_it_depends_on(write_parquet: WriteParquet, cache: Path) -> None:
    folder = write_parquet(TEN_EACH)
    open_store(source(folder), resolution=6, cache_dir=cache)
    open_store(source(folder), resolution=7, cache_dir=cache)
    open_store(source(folder, split_seed=1), resolution=6, cache_dir=cache)
    open_store(source(folder, classes=("dog", "cat")), resolution=6, cache_dir=cache)
    open_store(source(folder, label_column="label"), resolution=6, cache_dir=cache)
    os.utime(folder / "train.parquet", ns=(1, 1))
    open_store(source(folder), resolution=6, cache_dir=cache)
    open_store(source(folder), resolution=6, cache_dir=cache)
    assert len(stores_in(cache)) == 6


@pytest.mark.parametrize("content", [b"\x89PNG, but no more", None])
def test_a_corrupt_image_leaves_nothing_behind(
    write_parquet: WriteParquet, cache: Path, png: Png, content: bytes | None
) -> None:
    images: list[dict[str, bytes | str | None]] = [
        {"bytes": png(row), "path": None} for row in range(20)
    ]
    images[12]["bytes"] = content
    folder = write_parquet(TEN_EACH, images=images)
    with pytest.raises(InputError, match=r"train\.parquet, row 12 (cannot be decoded|is null)"):
        open_store(source(folder), resolution=6, cache_dir=cache)
    assert stores_in(cache) == []


def test_a_disk_too_small_is_known_before_decoding(cache: Path) -> None:
    with pytest.raises(InputError, match=r"need \d+\.\d GB in .*; free some space"):
        open_store(source("digits"), resolution=1_000_000, cache_dir=cache)
    assert stores_in(cache) == []


def test_a_disk_that_fills_up_leaves_nothing_behind(cache: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, hard))
    try:
        with pytest.raises(InputError, match=r"more space than is left in .*; free some space"):
            open_store(source("digits"), resolution=8, cache_dir=cache)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert stores_in(cache) == []


def test_a_cache_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(InputError, match="cannot be written"):
        open_store(source("digits"), resolution=8, cache_dir=tmp_path / "file")


def test_a_resolution_of_nothing(cache: Path) -> None:
    with pytest.raises(InputError, match="resolution=0 must be at least 1"):
        open_store(source("digits"), resolution=0, cache_dir=cache)


@pytest.fixture(scope="module")
def processes() -> ForkServerContext:
    """Starts clean processes, of which only the first has to import torch."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([store.__name__])
    return context


def open_and_count(cache: Path, barrier: Barrier, counts: "Queue[tuple[int, int]]") -> None:
    """Opens the digits in a process of its own; tells how many images it decoded."""
    decoded = []

    def counting(raw: RawImage, *, resolution: int) -> NDArray[np.uint8]:
        decoded.append(raw.where)
        return decode_square(raw, resolution=resolution)

    pytest.MonkeyPatch().setattr(decode, "decode_square", counting)
    barrier.wait()
    opened = open_store(source("digits"), resolution=8, cache_dir=cache)
    counts.put((len(decoded), sum(len(split) for split in opened.splits.values())))


def test_of_two_processes_one_decodes(cache: Path, processes: ForkServerContext) -> None:
    barrier, counts = processes.Barrier(2), processes.Queue()
    openers = [
        processes.Process(target=open_and_count, args=(cache, barrier, counts)) for _ in range(2)
    ]
    for opener in openers:
        opener.start()
    found = [counts.get(timeout=120) for _ in openers]
    for opener in openers:
        opener.join()
    assert sorted(found) == [(0, 1797), (1797, 1797)]


def open_and_hang(cache: Path, hanging: Event) -> None:
    """Opens the digits, but stops for ever in the midst of decoding."""

    def hang_at_1000(raw: RawImage, *, resolution: int) -> NDArray[np.uint8]:
        if raw.where.endswith("row 1000"):
            hanging.set()
            time.sleep(600)
        return decode_square(raw, resolution=resolution)

    pytest.MonkeyPatch().setattr(decode, "decode_square", hang_at_1000)
    open_store(source("digits"), resolution=8, cache_dir=cache)


def test_a_killed_writer_leaves_nothing_half(cache: Path, processes: ForkServerContext) -> None:
    hanging = processes.Event()
    writer = processes.Process(target=open_and_hang, args=(cache, hanging))
    writer.start()
    assert hanging.wait(timeout=120)
    (half,) = stores_in(cache)
    assert half.startswith(".")
    writer.kill()
    writer.join()

    opened = open_store(source("digits"), resolution=8, cache_dir=cache)
    assert sum(len(split) for split in opened.splits.values()) == 1797
    (whole,) = stores_in(cache)
    assert not whole.startswith(".")


@pytest.mark.shared
@pytest.mark.parametrize(
    ("name", "classes", "sizes"),
    [
        ("fashion_mnist", 10, (7000, 1500, 1500, 2000)),
        ("cifar10", 10, (7000, 1500, 1500, 2000)),
        ("gtsrb", 43, (6404, 1373, 1372, 2109)),
        ("kmnist10k", 10, (5600, 1200, 1200, 2000)),
        ("clothing10", 10, (3068, 341, 0, 372)),
        ("pneumoniamnist", 2, (4707, 524, 0, 624)),
        ("omniglot_small1", 136, (1428, 306, 306, 680)),
        ("deeppcb_defects", 6, (4811, 1031, 1031, 3140)),
    ],
)
def test_real_tasks_open(
    name: str, classes: int, sizes: tuple[int, int, int, int], cache: Path
) -> None:
    opened = open_store(source(DATA / name), resolution=32, cache_dir=cache)
    assert len(opened.class_names) == classes
    found = {split: len(part) for split, part in opened.splits.items()}
    names = ("train", "validation", "devtest", "test")
    assert found == {key: size for key, size in zip(names, sizes, strict=True) if size}
    for split in opened.splits.values():
        assert torch.bincount(split.labels, minlength=classes).min() >= 1
        assert split.images.float().std() > 10
