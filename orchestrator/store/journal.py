"""The journal: the sweep's own durable record, from which every other view can be rebuilt.

A folder of JSON-lines segments, one more for each driver that opened it. On a local disk events
are appended and synced; on an object store, which cannot append, the open segment is written
again whole, and a new one is begun before it grows large.
"""

import io
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from pyarrow import fs

Event = dict[str, Any]

REWRITTEN_SEGMENT_EVENTS = 200
"""Events of a segment on a filesystem that cannot append."""


class Journal:
    """Append-only events under `folder` of a filesystem. One writer; the caller sees to that.

    The first event makes the folder.
    """

    def __init__(self, filesystem: fs.FileSystem, folder: str) -> None:
        self._filesystem = filesystem
        self._folder = folder
        self._local: BinaryIO | None = None
        self._lines: list[bytes] = []
        self._segment = 0

    def events(self) -> Iterator[Event]:
        """Reads all events in order. A last line that a killed writer tore is left out."""
        for path in self._segments():
            with self._filesystem.open_input_stream(path) as stream:
                for line in io.BufferedReader(stream):
                    if line.endswith(b"\n"):
                        yield json.loads(line)

    def append(self, event: Mapping[str, Any]) -> None:
        """Returns once the event will survive the death of this process and of its machine.

        Raises `OSError` when it cannot be written; the journal is then as it was before.
        """
        line = json.dumps(event).encode() + b"\n"
        if not self._segment:
            self._begin_segment()
        try:
            if self._local is not None:
                _write_synced(self._local, line)
            else:
                with self._filesystem.open_output_stream(self._path(self._segment)) as stream:
                    stream.write(b"".join((*self._lines, line)))
        except OSError:
            self.close()  # what got through is this segment's torn end; the next begins another
            raise
        if self._local is None:
            self._lines.append(line)
            if len(self._lines) == REWRITTEN_SEGMENT_EVENTS:
                self._begin_segment()

    def close(self) -> None:
        """Releases the open segment; appending again begins a new one."""
        if self._local is not None:
            self._local.close()
        self._local, self._lines, self._segment = None, [], 0

    def _begin_segment(self) -> None:
        taken = [int(Path(path).stem.removeprefix("segment-")) for path in self._segments()]
        segment = max(taken, default=0) + 1
        self._filesystem.create_dir(self._folder, recursive=True)
        local = _local_path(self._filesystem, self._path(segment))
        if local is not None:
            self._local = local.open("xb", buffering=0)
            _sync_folder(local.parent)
        self._segment, self._lines = segment, []

    def _segments(self) -> list[str]:
        found = self._filesystem.get_file_info(fs.FileSelector(self._folder, allow_not_found=True))
        return sorted(info.path for info in found if info.base_name.startswith("segment-"))

    def _path(self, segment: int) -> str:
        return f"{self._folder}/segment-{segment:06d}.jsonl"


def _local_path(filesystem: fs.FileSystem, path: str) -> Path | None:
    if isinstance(filesystem, fs.SubTreeFileSystem):
        return _local_path(filesystem.base_fs, f"{filesystem.base_path.rstrip('/')}/{path}")
    return Path(path) if isinstance(filesystem, fs.LocalFileSystem) else None


def _write_synced(file: BinaryIO, line: bytes) -> None:
    """Writes unbuffered, so that nothing of a line that failed is written by a later flush."""
    while line:
        line = line[file.write(line) :]
    os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    """Makes a new file's name as durable as its content."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
