"""The journal gives back what was appended, whatever became of its writer."""

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from itertools import count
from pathlib import Path
from typing import Any

import fsspec
import pytest
from pyarrow import fs

from orchestrator.store import journal as module
from orchestrator.store.journal import Journal

NAMES = count()


@pytest.fixture(params=["local", "object store"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> fs.FileSystem:
    """A disk, or a filesystem that, like an object store's, knows no append."""
    if request.param == "local":
        return fs.SubTreeFileSystem(str(tmp_path), fs.LocalFileSystem())
    memory = fs.PyFileSystem(
        fs.FSSpecHandler(fsspec.filesystem("memory", skip_instance_cache=True))
    )
    folder = f"/bucket-{next(NAMES)}"
    memory.create_dir(folder)
    return fs.SubTreeFileSystem(folder, memory)


@pytest.fixture
def disk(tmp_path: Path) -> fs.FileSystem:
    return fs.SubTreeFileSystem(str(tmp_path), fs.LocalFileSystem())


Opened = Callable[..., Journal]


@pytest.fixture
def opened() -> Iterator[Opened]:
    """Opens journals and closes them at the end, as a process that ends would."""
    with ExitStack() as stack:
        yield lambda storage, folder="journal": stack.enter_context(
            closing(Journal(storage, folder))
        )


def events(storage: fs.FileSystem) -> list[dict[str, Any]]:
    """The events that another process reads."""
    return list(Journal(storage, "journal").events())


def test_a_new_journal_is_empty(storage: fs.FileSystem) -> None:
    assert events(storage) == []


def test_a_second_reader_sees_an_event_as_soon_as_append_returns(
    opened: Opened, storage: fs.FileSystem
) -> None:
    journal = opened(storage)
    for number in range(3):
        journal.append({"event": "x", "number": number, "text": "two\nlines · ü"})
        assert [event["number"] for event in events(storage)] == list(range(number + 1))
    assert events(storage)[0]["text"] == "two\nlines · ü"


def test_each_writer_begins_a_segment_and_order_is_kept(
    opened: Opened, storage: fs.FileSystem
) -> None:
    for number in range(12):
        opened(storage).append({"number": number})
    assert [event["number"] for event in events(storage)] == list(range(12))
    assert len(storage.get_file_info(fs.FileSelector("journal"))) == 12


def test_appending_after_close_goes_on_in_a_new_segment(
    opened: Opened, storage: fs.FileSystem
) -> None:
    journal = opened(storage)
    journal.append({"number": 0})
    journal.close()
    journal.close()
    journal.append({"number": 1})
    assert [event["number"] for event in events(storage)] == [0, 1]


def test_floats_survive_exactly(opened: Opened, storage: fs.FileSystem) -> None:
    values = [0.1 + 0.2, 1e-300, 1.7976931348623157e308, 3.0]
    opened(storage).append({"values": values})
    assert events(storage)[0]["values"] == values


@pytest.mark.parametrize("kept_bytes", [1, 5, 20])
def test_a_last_line_torn_by_a_kill_is_skipped(
    opened: Opened, disk: fs.FileSystem, tmp_path: Path, kept_bytes: int
) -> None:
    journal = opened(disk)
    journal.append({"number": 0})
    journal.append({"number": 1, "padding": "x" * 40})
    (segment,) = (tmp_path / "journal").iterdir()
    whole, torn, _ = segment.read_bytes().split(b"\n")
    segment.write_bytes(whole + b"\n" + torn[:kept_bytes])
    assert [event["number"] for event in events(disk)] == [0]

    opened(disk).append({"number": 2})
    assert [event["number"] for event in events(disk)] == [0, 2]


def test_damage_in_the_middle_is_no_torn_line_and_is_not_passed_over(
    opened: Opened, disk: fs.FileSystem, tmp_path: Path
) -> None:
    opened(disk).append({"number": 0})
    (segment,) = (tmp_path / "journal").iterdir()
    segment.write_bytes(b'{"number": \n' + segment.read_bytes())
    with pytest.raises(json.JSONDecodeError):
        events(disk)


def test_an_event_that_is_no_json_leaves_the_journal_as_it_was(
    opened: Opened, storage: fs.FileSystem
) -> None:
    journal = opened(storage)
    journal.append({"number": 0})
    with pytest.raises(TypeError):
        journal.append({"number": object()})
    journal.append({"number": 1})
    assert [event["number"] for event in events(storage)] == [0, 1]


def test_a_segment_that_must_be_rewritten_is_ended_before_it_grows(
    opened: Opened,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "REWRITTEN_SEGMENT_EVENTS", 4)
    memory = fsspec.filesystem("memory", skip_instance_cache=True)
    storage = fs.PyFileSystem(fs.FSSpecHandler(memory))
    folder = f"/rolls-{next(NAMES)}"
    journal = opened(storage, folder)
    for number in range(10):
        journal.append({"number": number})
    segments = sorted(info.path for info in storage.get_file_info(fs.FileSelector(folder)))
    lines = [storage.open_input_stream(path).read().count(b"\n") for path in segments]
    assert lines == [4, 4, 2]
    assert [event["number"] for event in Journal(storage, folder).events()] == list(range(10))


class FullDisk:
    """A file that takes `room` more bytes."""

    def __init__(self, file: Any, room: int) -> None:
        self._file, self._room = file, room

    def write(self, data: bytes) -> int:
        if not self._room:
            raise OSError(28, "No space left on device")
        taken = data[: self._room]
        self._room -= len(taken)
        return int(self._file.write(taken))

    def fileno(self) -> int:
        return int(self._file.fileno())

    def close(self) -> None:
        self._file.close()


@pytest.fixture
def full(opened: Opened, disk: fs.FileSystem) -> Journal:
    journal = opened(disk)
    journal.append({"number": 0})
    file: Any = FullDisk(journal._local, room=7)  # does all that a journal asks of a file
    journal._local = file
    return journal


def test_a_line_that_the_disk_took_half_of_does_not_spoil_the_next(
    disk: fs.FileSystem, full: Journal
) -> None:
    with pytest.raises(OSError, match="No space"):
        full.append({"number": 1})
    full.append({"number": 2})  # room was made
    assert [event["number"] for event in events(disk)] == [0, 2]
