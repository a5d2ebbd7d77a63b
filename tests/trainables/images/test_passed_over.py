"""Whatever a source holds is read, or counted with the rule that leaves it out, or refused."""

import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread

import pytest
from PIL import Image

from tests.trainables.images.test_tasks import TEN_EACH, refused, summary
from tests.trainables.images.writers import Png, WriteFolders, WriteParquet
from trainables.images.store import open_store
from trainables.images.tasks import TaskSource, TaskSummary


def counts(found: TaskSummary) -> dict[str, int]:
    """Returns how much each rule leaves out."""
    return {passed.rule: passed.count for passed in found.passed_over}


def images(found: TaskSummary) -> int:
    return sum(found.images.values())


def as_avif(folder: Path) -> None:
    Image.new("L", (8, 8)).save(folder / "more.avif")


def as_capitals(folder: Path) -> None:
    Image.new("L", (8, 8)).save(folder / "MORE.JPEG")


def without_ending(folder: Path) -> None:
    Image.new("L", (8, 8)).save(folder / "more", "PNG")


def with_another_ending(folder: Path) -> None:
    Image.new("L", (8, 8)).save(folder / "more.txt", "WEBP")


def behind_a_linked_folder(folder: Path) -> None:
    elsewhere = folder.parents[1] / "elsewhere"
    elsewhere.mkdir()
    as_avif(elsewhere)
    (folder / "linked").symlink_to(elsewhere)


def behind_a_link(folder: Path) -> None:
    Image.new("L", (8, 8)).save(folder.parents[1] / "elsewhere.png")
    (folder / "linked").symlink_to(folder.parents[1] / "elsewhere.png")


@pytest.mark.parametrize(
    "add",
    [
        as_avif,
        as_capitals,
        without_ending,
        with_another_ending,
        behind_a_linked_folder,
        behind_a_link,
    ],
)
def test_images_are_known_however_they_lie_there(
    write_folders: WriteFolders, add: Callable[[Path], None]
) -> None:
    folder = write_folders({"a": 10, "b": 10})
    add(folder / "a")
    found = summary(folder)
    assert images(found) == 21
    assert found.passed_over == ()


def test_what_is_left_out_is_counted_by_rule(write_folders: WriteFolders, png: Png) -> None:
    folder = write_folders({"a": 5, "b": 5, "__MACOSX": 3, ".cache": 2})
    (folder / "a" / "Thumbs.db").write_bytes(b"system")
    (folder / "a" / "notes.txt").write_text("no image")
    (folder / "b" / "._000.png").write_bytes(b"fork")
    (folder / "README.md").write_text("read me")
    (folder / "stray.png").write_bytes(png(1))
    found = summary(folder)
    assert found.class_names == ("a", "b")
    assert counts(found) == {
        "leftovers of operating systems and unpackers": 4,
        "hidden names, which begin with a dot": 3,
        "files in no class folder": 2,
        "files that are no image by ending or content": 1,
    }


def test_a_part_without_a_name_is_counted_by_its_files(write_folders: WriteFolders) -> None:
    write_folders({"a": 5, "b": 5}, under="train")
    found = summary(write_folders({"a": 4, "b": 3}, under="extra"))
    assert counts(found) == {"folders that are not named train, validation or test": 7}


def test_a_circle_of_links_is_walked_once(write_folders: WriteFolders) -> None:
    folder = write_folders({"a": 5, "b": 5})
    (folder / "a" / "up").symlink_to(folder)
    found = summary(folder)
    assert images(found) == 10
    assert counts(found) == {"links to folders that are read already or lead in a circle": 1}


def test_links_to_nowhere_and_empty_classes_are_refused_together(
    write_folders: WriteFolders,
) -> None:
    folder = write_folders({"a": 5, "b": 0, "c": 0})
    for name in ("x.png", "y.png"):
        (folder / "a" / name).symlink_to("/no/such/file")
    message = refused(folder)
    for name in ("x.png", "y.png"):
        assert f"link {folder}/a/{name} leads to /no/such/file, which is not there" in message
    for name in "bc":
        assert f"class folder {folder}/{name} holds no image" in message
    assert message.count("add what is missing or remove these") == 1


def test_tables_beside_others_are_counted(write_parquet: WriteParquet) -> None:
    for name in ("train.parquet", "extra.parquet", "__MACOSX/test.parquet"):
        folder = write_parquet(TEN_EACH, name=name)
    (folder / "README.md").write_text("read me")
    assert counts(summary(folder)) == {
        "Parquet files named neither train, validation nor test": 1,
        "leftovers of operating systems and unpackers": 1,
        "files that are no Parquet file": 1,
    }


def test_a_part_without_labels_is_counted_by_its_images(write_parquet: WriteParquet) -> None:
    write_parquet(TEN_EACH)
    folder = write_parquet([-1] * 7, name="test.parquet")
    found = summary(folder)
    assert found.official == ("train",)
    assert counts(found) == {"images of test without labels (all null or negative)": 7}


def test_a_rule_is_told_with_its_count_and_a_few_places(write_folders: WriteFolders) -> None:
    folder = write_folders({"a": 5, "b": 5})
    for number in range(5):
        (folder / "a" / f"{number}.txt").write_text("no image")
    (passed,) = summary(folder).passed_over
    places = ", ".join(f"{folder}/a/{number}.txt" for number in range(3))
    assert str(passed) == f"files that are no image by ending or content: 5 ({places}, …)"


@pytest.mark.parametrize("step", ["inspect", "open"])
def test_all_bad_images_are_told_at_once(
    write_folders: WriteFolders, tmp_path: Path, step: str
) -> None:
    folder = write_folders({"a": 40, "b": 40})
    bad = [folder / name for name in ("a/000.png", "a/019.png", "b/000.png", "b/020.png")]
    for path in bad:
        path.write_bytes(path.read_bytes()[:20])
    if step == "inspect":
        message = refused(folder)
    else:
        with pytest.raises(ValueError, match="cannot be decoded") as caught:
            open_store(TaskSource(source=str(folder)), resolution=8, cache_dir=tmp_path / "cache")
        message = str(caught.value)
    for path in bad:
        assert message.count(f"he image at {path} cannot be decoded") == 1
    assert message.count("replace it or remove it") == 1


def test_a_mistyped_folder_is_told_with_the_nearest(
    write_folders: WriteFolders, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_folders({"a": 5, "b": 5})
    assert f"does not exist (the nearest is {folder})" in refused(f"{folder}s")

    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.chdir(folder.parent)
    assert "source='tusk' is no folder here (the nearest is task)" in refused("tusk")


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Has a hub on this machine that knows no dataset; gives the paths that it is asked for."""
    import huggingface_hub.constants

    paths: list[str] = []

    class Hub(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            paths.append(self.path)
            self.send_response(404)
            self.send_header("X-Error-Code", "RepoNotFound")
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Hub) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        endpoint = f"http://127.0.0.1:{server.server_port}"
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", endpoint)
        monkeypatch.setattr("datasets.config.HF_ENDPOINT", endpoint)
        yield paths
        server.shutdown()


def test_the_hub_is_asked_once_for_what_it_does_not_have(asked: list[str]) -> None:
    message = refused("nobody/mistyped")
    assert "no folder here, and the Hugging Face Hub has no dataset of that name" in message
    assert asked == ["/api/datasets/nobody/mistyped"]


def test_a_hub_that_does_not_answer_is_asked_once(
    asked: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub.constants

    with HTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as closed:
        nobody = f"http://127.0.0.1:{closed.server_port}"
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", nobody)
    monkeypatch.setattr("datasets.config.HF_ENDPOINT", nobody)
    began = time.monotonic()
    assert "could not be reached" in refused("nobody/mistyped")
    assert time.monotonic() - began < 10
    assert asked == []
