"""Folders in every shape: what is an image, what is left out, which links are followed."""

import os
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest
from PIL import Image

from tests.trainables.images.writers import Png, WriteFolders, WriteParquet
from trainables.errors import InputError
from trainables.images.catalog import PassedOver
from trainables.images.tasks import TaskSource, TaskSummary, inspect

Add = Callable[[Path], object]
"""Puts more into a class folder."""


def summary(folder: Path, *, subset: str | None = None) -> TaskSummary:
    return inspect(TaskSource(source=str(folder), subset=subset))


def left_out(found: TaskSummary) -> dict[str, int]:
    """What is left out: counts by the first word of the rule and the place's name."""
    return {
        f"{passed.rule.split()[0]} {Path(place).name}": passed.count
        for passed in found.passed_over
        for place in passed.places
    }


@pytest.fixture
def two_classes(write_folders: WriteFolders) -> Path:
    return write_folders({"a": 10, "b": 10})


def _save(suffix: str, form: str) -> Add:
    def add(folder: Path) -> None:
        for number in range(5):
            Image.new("RGB", (8, 8), (number, 9, 9)).save(folder / f"more{number}{suffix}", form)

    return add


@pytest.mark.parametrize(
    ("suffix", "form"),
    [
        (".avif", "AVIF"),
        (".JP2", "JPEG2000"),
        (".tga", "TGA"),
        (".qoi", "QOI"),
        (".ico", "ICO"),
        (".psp", "PCX"),
        ("", "PNG"),
        ("", "JPEG"),
        ("", "WEBP"),
        ("", "AVIF"),
        (".0", "TIFF"),
        (".png.bak", "PNG"),
        (".data", "PPM"),
    ],
)
def test_an_image_of_any_ending_is_an_image(two_classes: Path, suffix: str, form: str) -> None:
    _save(suffix, form)(two_classes / "a")
    found = summary(two_classes)
    assert sum(found.images.values()) == 25
    assert found.passed_over == ()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"Python is no picture",
        b"P5 results of 3",
        b"#define no image",
        b"BM",
        b"%!PS-Adobe-3.0",
    ],
)
@pytest.mark.parametrize("name", ["notes.txt", "README", "x.heic"])
def test_a_file_that_is_no_image_is_counted(two_classes: Path, name: str, content: bytes) -> None:
    (two_classes / "a" / name).write_bytes(content)
    found = summary(two_classes)
    assert sum(found.images.values()) == 20
    assert left_out(found) == {f"files {name}": 1}
    assert found.unused == (str(two_classes / "a" / name),)


def test_links_are_followed(two_classes: Path, tmp_path: Path, png: Png) -> None:
    far = tmp_path / "far" / "deep"
    far.mkdir(parents=True)
    for number in range(5):
        (far / f"{number}.png").write_bytes(png(number))
    (two_classes / "a" / "more").symlink_to(tmp_path / "far")
    (two_classes / "b" / "one.png").symlink_to(far / "1.png")
    (two_classes / "c").symlink_to(far)
    counts = summary(two_classes).class_counts
    assert [sum(count[name] for count in counts.values()) for name in "abc"] == [15, 11, 5]


@pytest.mark.parametrize("target", [".", "..", "../..", "/", "deep", "../a"])
def test_links_in_a_circle_end(two_classes: Path, png: Png, target: str) -> None:
    (two_classes / "a" / "deep").mkdir()
    (two_classes / "a" / "deep" / "x.png").write_bytes(png(1))
    (two_classes / "a" / "zz").symlink_to(target)
    found = summary(two_classes)
    assert sum(found.images.values()) == 21
    assert left_out(found) == {"links zz": 1}


def test_folders_that_link_to_one_another_end(two_classes: Path, tmp_path: Path, png: Png) -> None:
    for name, other in (("x", "y"), ("y", "x")):
        (tmp_path / name).mkdir()
        (tmp_path / name / f"{name}.png").write_bytes(png(1))
        (tmp_path / name / other).symlink_to(tmp_path / other)
    (two_classes / "a" / "x").symlink_to(tmp_path / "x")
    assert sum(summary(two_classes).images.values()) == 22


@pytest.mark.parametrize(
    "name", ["__MACOSX", "@eaDir", "lost+found", ".ipynb_checkpoints", ".git", "__pycache__"]
)
@pytest.mark.parametrize("inside", ["", "a"])
def test_a_folder_that_a_system_makes_is_no_class(
    two_classes: Path, png: Png, name: str, inside: str
) -> None:
    folder = two_classes / inside / name / "a"
    folder.mkdir(parents=True)
    for number in range(3):
        (folder / f"._{number}.png").write_bytes(b"an AppleDouble file, no image")
        (folder / f"{number}.png").write_bytes(png(number))
    found = summary(two_classes)
    assert found.class_names == ("a", "b")
    assert sum(found.images.values()) == 20
    assert list(left_out(found).values()) == [6]


def test_hidden_files_are_counted(two_classes: Path) -> None:
    (two_classes / "a" / "._000.png").write_bytes(b"an AppleDouble file, no image")
    (two_classes / ".DS_Store").write_bytes(b"Bud1")
    (passed,) = summary(two_classes).passed_over
    assert (passed.count, len(passed.places)) == (2, 2)
    assert str(passed).startswith("hidden names, which begin with a dot: 2 (")


def test_what_lies_in_no_class_is_counted(write_folders: WriteFolders, png: Png) -> None:
    write_folders({"a": 10, "b": 10}, under="train")
    write_folders({"a": 2, "b": 2}, under="extra")
    folder = write_folders({"a": 3, "b": 3}, under="test")
    (folder / "labels.csv").write_text("no image")
    (folder / "stray.png").write_bytes(png(1))
    (folder / "train" / "stray.png").write_bytes(png(1))
    assert left_out(summary(folder)) == {
        "files stray.png": 3,
        "files labels.csv": 3,
        "folders extra": 4,
    }


def test_a_pipe_is_not_waited_for(two_classes: Path) -> None:
    os.mkfifo(two_classes / "a" / "pipe.png")
    assert left_out(summary(two_classes)) == {"neither pipe.png": 1}


def _file(folder: Path) -> None:
    (folder / "gone.png").symlink_to("nowhere.png")


def _folder(folder: Path) -> None:
    (folder / "more").symlink_to("/no/such/folder")


def _class(folder: Path) -> None:
    (folder.parent / "c").symlink_to("/no/such/class")


@pytest.mark.parametrize("add", [_file, _folder, _class])
def test_a_link_that_leads_nowhere_is_refused(two_classes: Path, add: Add) -> None:
    add(two_classes / "a")
    with pytest.raises(InputError, match=r"^The link .* leads to .*no.*, which is not there, but"):
        summary(two_classes)


def test_all_that_is_wrong_with_folders_is_told_at_once(two_classes: Path) -> None:
    _file(two_classes / "a")
    _folder(two_classes / "b")
    (two_classes / "c").mkdir()
    (two_classes / "d").mkdir()
    with pytest.raises(InputError) as caught:
        summary(two_classes)
    message = str(caught.value)
    for part in ("gone.png leads", "more leads", "/c holds no image", "/d holds no image"):
        assert part in message


def test_images_next_to_tables_are_counted(write_parquet: WriteParquet, png: Png) -> None:
    folder = write_parquet([0, 1] * 10)
    for name in (
        "cat/1.png",
        "cat/2.png",
        "notes.txt",
        ".hidden.parquet",
        "__MACOSX/train.parquet",
    ):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(png(1))
    assert left_out(summary(folder)) == {
        "files 1.png": 3,
        "files 2.png": 3,
        "files notes.txt": 3,
        "hidden .hidden.parquet": 1,
        "leftovers __MACOSX": 1,
    }


def test_a_missing_shard_is_refused(write_parquet: WriteParquet) -> None:
    folder = write_parquet([0, 1] * 10)
    (folder / "train-2.parquet").symlink_to("/no/such/train-2.parquet")
    with pytest.raises(InputError, match="leads to /no/such/train-2.parquet, which is not there"):
        summary(folder)


@pytest.mark.parametrize("label", [-1, None])
def test_a_part_without_labels_is_counted(write_parquet: WriteParquet, label: int | None) -> None:
    write_parquet([0, 1] * 10)
    folder = write_parquet([label] * 7, name="test.parquet", label_type=pa.int64())
    found = summary(folder)
    assert found.official == ("train",)
    assert left_out(found) == {"images test.parquet": 7}


def test_few_places_are_shown() -> None:
    passed = PassedOver(rule="files", count=4, places=("a", "b", "c", "d"))
    assert str(passed) == "files: 4 (a, b, c, …)"
