"""The feature store: whole or not at all, extended and never repeated, equal whoever writes."""

import multiprocessing
import os
import threading
from multiprocessing.context import ForkServerContext
from multiprocessing.synchronize import Event
from pathlib import Path
from time import sleep

import pytest
import torch
from filelock import FileLock
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from trainables.batches import feature_store as features
from trainables.batches.feature_store import (
    Features,
    balanced_order,
    evict,
    open_features,
    whole_chunks,
)
from trainables.errors import InputError

TOTAL = 200


def value(first: int, last: int) -> Tensor:
    """Features [last - first, 3] that tell the places they are of."""
    return torch.arange(first, last, dtype=torch.float32).unsqueeze(1) * torch.tensor([1.0, 2, 3])


class Extractor:
    """Extracts as `value` does and keeps what it was asked for."""

    def __init__(self) -> None:
        self.asked: list[tuple[int, int]] = []

    def __call__(self, first: int, last: int) -> Tensor:
        self.asked.append((first, last))
        return value(first, last)


def opened(path: Path, images: int, extract: features.Extract | None = None) -> Features:
    return open_features(
        path, images=images, total=TOTAL, shape=(3,), extract=extract or Extractor()
    )


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "trunk" / "train.f32"


def test_more_images_extend_fewer(path: Path) -> None:
    extract = Extractor()
    few = opened(path, 32, extract)
    assert few.extracted == 32
    assert extract.asked == [(0, 8), (8, 16), (16, 32)]

    more = opened(path, TOTAL, extract)
    assert more.extracted == TOTAL - 32
    assert extract.asked[3:] == [(32, 64), (64, 128), (128, 192), (192, 200)]
    assert torch.equal(more.rows, value(0, TOTAL))

    again = opened(path, 64, extract)
    assert again.extracted == 0
    assert len(extract.asked) == 7
    assert torch.equal(again.rows, value(0, 64))


def test_the_file_is_that_of_one_go(path: Path, tmp_path: Path) -> None:
    for images in (8, 64, 128):
        opened(path, images)
    opened(tmp_path / "whole.f32", 128)
    assert path.read_bytes() == (tmp_path / "whole.f32").read_bytes()


def test_nobody_writes_into_what_others_read(path: Path) -> None:
    opened(path, 8).rows.zero_()
    assert torch.equal(opened(path, 8).rows, value(0, 8))


@given(images=st.floats(0, 1e6), total=st.integers(1, 5000))
def test_whole_chunks_end_where_extraction_stops(images: float, total: int) -> None:
    ends, first = [0], 0
    while first < total:
        first = features.end_of_chunk(first, total=total)
        ends.append(first)
    assert whole_chunks(images, total=total) == max(end for end in ends if end <= images)


@given(labels=st.lists(st.integers(0, 4), min_size=1, max_size=120), share=st.floats(0, 1))
def test_every_beginning_of_the_order_is_balanced(labels: list[int], share: float) -> None:
    every = torch.tensor(labels)
    order = balanced_order(every)
    assert order.sort().values.tolist() == list(range(len(labels)))
    begun = round(share * len(labels))
    for label in every.unique():
        expected = begun / len(labels) * (every == label).sum()
        found = (every[order[:begun]] == label).sum()
        assert abs(found - expected) <= 3, "rounding of the others may push it by one or two"


def test_the_order_within_a_class_is_random_and_fixed() -> None:
    labels = torch.zeros(50, dtype=torch.int64)
    order = balanced_order(labels)
    assert order.tolist() != list(range(50))
    assert torch.equal(order, balanced_order(labels))


def test_of_many_writers_each_image_has_one(path: Path) -> None:
    found: list[Features] = []
    barrier = threading.Barrier(4)

    def slowly(first: int, last: int) -> Tensor:
        sleep(0.01)
        return value(first, last)

    def write(images: int) -> None:
        barrier.wait()
        found.append(opened(path, images, slowly))

    writers = [threading.Thread(target=write, args=(images,)) for images in (64, 128, 192, 192)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert sum(one.extracted for one in found) == 192
    for one in found:
        assert torch.equal(one.rows, value(0, len(one.rows)))


@pytest.fixture(scope="module")
def processes() -> ForkServerContext:
    """Starts clean processes, of which only the first has to import torch."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([features.__name__])
    return context


def write_and_hang(path: Path, hanging: Event) -> None:
    """Writes features, but stops for ever in the midst of it."""

    def extract(first: int, last: int) -> Tensor:
        if first == 128:
            hanging.set()
            sleep(600)
        return -value(first, last)  # which nobody may ever read

    opened(path, 192, extract)


def test_a_killed_writer_leaves_what_was_there(path: Path, processes: ForkServerContext) -> None:
    opened(path, 16)
    hanging = processes.Event()
    writer = processes.Process(target=write_and_hang, args=(path, hanging))
    writer.start()
    assert hanging.wait(timeout=120)
    writer.kill()
    writer.join()
    with path.open("ab") as file:
        file.write(b"half a row of a writer whose buffer reached the disk")

    assert opened(path, 16).extracted == 0
    after = opened(path, 64)
    assert after.extracted == 48
    assert torch.equal(after.rows, value(0, 64))


def test_a_writer_that_raises_leaves_what_was_there(path: Path) -> None:
    opened(path, 16)

    def extract(first: int, last: int) -> Tensor:
        if first == 64:
            raise torch.OutOfMemoryError("no memory")
        return -value(first, last)

    with pytest.raises(torch.OutOfMemoryError):
        opened(path, 128, extract)
    assert torch.equal(opened(path, 128).rows, value(0, 128))


@pytest.mark.parametrize("place", [0, 3, 20, 64, 700])
def test_a_damaged_file_is_extracted_anew(
    path: Path, caplog: pytest.LogCaptureFixture, place: int
) -> None:
    """The places lie in the number of rows, in their digest and in the rows."""
    opened(path, 64)
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)
    again = opened(path, 64)
    assert again.extracted == 64
    assert torch.equal(again.rows, value(0, 64))
    assert "train.f32 are damaged; they are extracted anew" in caplog.text
    assert opened(path, 64).extracted == 0


def test_a_file_that_lost_its_end_is_extracted_anew(path: Path) -> None:
    opened(path, 64)
    os.truncate(path, 500)
    assert torch.equal(opened(path, 64).rows, value(0, 64))


def test_a_file_of_an_earlier_version_is_extracted_anew_in_silence(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    opened(path, 64)
    content = path.read_bytes()
    path.write_bytes(content[:8] + bytes(32) + content[40:])
    assert opened(path, 64).extracted == 64
    assert not caplog.text


def test_features_that_do_not_fit_on_the_disk_are_refused_before_any_is_extracted(
    path: Path,
) -> None:
    extract = Extractor()
    with pytest.raises(InputError, match=r"need [\d.e+]+ GB in .*; free some space there"):
        open_features(path, images=10**9, total=10**9, shape=(10**9,), extract=extract)
    assert extract.asked == []


def write_on_a_full_disk(path: Path, answer: "multiprocessing.Queue[str]") -> None:
    """A file may grow to 1000 bytes only, as on a disk that fills up meanwhile."""
    import resource
    import signal

    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
    try:
        opened(path, 128)
    except InputError as error:
        answer.put(str(error))


def test_a_disk_that_fills_up_is_told_in_a_sentence(
    path: Path, processes: ForkServerContext
) -> None:
    answer = processes.Queue()
    writer = processes.Process(target=write_on_a_full_disk, args=(path, answer))
    writer.start()
    sentence = answer.get(timeout=120)
    writer.join()
    assert "need more space than is left in" in sentence
    assert torch.equal(opened(path, 128).rows, value(0, 128))


def test_a_folder_that_cannot_be_written_is_told_in_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(InputError, match="feature store .* cannot be written"):
        opened(tmp_path / "file" / "train.f32", 8)


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """A store of four trunks with 64 images each, the first written longest ago."""
    for age, trunk in enumerate("dcba"):
        file = tmp_path / trunk / "train.f32"
        opened(file, 64)
        os.utime(file, (1000 - age, 1000 - age))
    return tmp_path


def trunks(store: Path) -> str:
    return "".join(sorted(file.parent.name for file in store.glob("*/*.f32")))


def test_what_was_opened_longest_ago_is_evicted_first(store: Path) -> None:
    each = (store / "a" / "train.f32").stat().st_size
    opened(store / "a" / "train.f32", 8)  # used, and so the newest
    evict(store, keep=store / "b" / "train.f32", capacity_bytes=4 * each)
    assert trunks(store) == "abcd"
    evict(store, keep=store / "b" / "train.f32", capacity_bytes=3 * each)
    assert trunks(store) == "abd", "b is older than c, but kept"
    evict(store, keep=store / "b" / "train.f32", capacity_bytes=0)
    assert trunks(store) == "b"


def test_what_is_being_written_is_not_evicted(store: Path) -> None:
    with FileLock(store / "a" / "train.lock"):
        evict(store, keep=store / "d" / "train.f32", capacity_bytes=0)
    assert trunks(store) == "ad"


def test_a_writer_makes_room_and_who_reads_what_goes_reads_on(
    store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader = opened(store / "a" / "train.f32", 64)
    monkeypatch.setattr(features, "_DISK_SHARE", 0.0)
    opened(store / "b" / "train.f32", 128)
    assert trunks(store) == "b"
    assert torch.equal(reader.rows, value(0, 64))
    again = opened(store / "a" / "train.f32", 64)
    assert again.extracted == 64, "what was evicted is extracted, and billed, again"
    assert torch.equal(again.rows, value(0, 64))
