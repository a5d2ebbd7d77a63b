"""Folders of Parquet files, on this machine or wherever pyarrow reaches."""

import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.fs
import pyarrow.parquet as pq
from numpy.typing import NDArray

from trainables.errors import InputError, Key, first_line
from trainables.images.catalog import Catalog, PassedOver, part_named
from trainables.images.schema import ColumnNames
from trainables.images.tables import read_tables
from trainables.images.walk import (
    Place,
    Walk,
    files_below,
    left_out_by_name,
    place_of,
    places_above,
)

SUFFIXES = frozenset({".parquet", ".parq", ".pq"})
"""Endings, in either case, that make a file a Parquet file."""

_BATCH_ROWS = 256
_DEEPEST = 6  # folders below the task's; `default/train/shards` is three
_NAMES = re.compile(r"[-._= 0-9]+")
_FIRST_WORD = re.compile(r"^[^-_.]+")
_NO_NAMES = frozenset(
    {"", "data", "of", "parquet", "part", "partial", "parts", "pq", "shard", "shards", "split"}
)
"""Words in the names of folders that name neither a split nor a configuration."""
_OTHER = "files that are no Parquet file"
_PARTLESS = "Parquet files named neither train, validation nor test"
_UNCHOSEN = "Parquet files of configurations that task.subset does not choose"
_DEEP = f"folders more than {_DEEPEST} levels down"


@dataclass(frozen=True, kw_only=True)
class ParquetFolder:
    """The Parquet files of a task: `train.parquet`, or shards like `train-00000-of-00002.parquet`.

    They lie in the folder itself, under `data/` or in folders of shards, in folders named after
    the part, or below one folder for each configuration.
    """

    filesystem: pyarrow.fs.FileSystem
    files: dict[str, list[pyarrow.fs.FileInfo]]
    """By part, in the order of their names."""
    columns: ColumnNames
    passed_over: tuple[PassedOver, ...]
    root: Path | None
    """The task's folder, if it lies on this machine: images may lie in it next to the tables."""

    def identity(self) -> list[Any]:
        return [
            [part, file.path, file.size, file.mtime_ns]
            for part, files in sorted(self.files.items())
            for file in files
        ]

    def read(self) -> Catalog:
        return read_tables(
            {
                part: [ParquetShard(filesystem=self.filesystem, where=f.path) for f in files]
                for part, files in self.files.items()
            },
            self.columns,
            image_roots=(self.root,) if self.root else (),
        )


@dataclass(frozen=True, kw_only=True)
class ParquetShard:
    """One Parquet file; a damaged one raises `InputError` with its name."""

    filesystem: pyarrow.fs.FileSystem
    where: str

    @cached_property
    def schema(self) -> pa.Schema:
        with self._open() as file:
            return file.schema_arrow

    def column(self, name: str) -> pa.ChunkedArray:
        with self._open() as file:
            try:
                return file.read(columns=[name]).column(name)
            except (pa.ArrowException, OSError) as error:
                raise self._damaged(error) from error

    def values(self, name: str, rows: NDArray[np.intp]) -> Iterator[Any]:
        with self._open() as file:
            sizes = [file.metadata.row_group(g).num_rows for g in range(file.num_row_groups)]
            end = 0
            for group, size in enumerate(sizes):
                start, end = end, end + size
                if ((rows >= start) & (rows < end)).any():
                    yield from self._group_values(file, group, start, name, rows)

    def _group_values(
        self, file: pq.ParquetFile, group: int, start: int, name: str, rows: NDArray[np.intp]
    ) -> Iterator[Any]:
        batches = file.iter_batches(_BATCH_ROWS, row_groups=[group], columns=[name])
        while True:
            try:
                batch = next(batches, None)
            except (pa.ArrowException, OSError) as error:
                raise self._damaged(error) from error
            if batch is None:
                return
            end = start + batch.num_rows
            # One by one: Arrow has no `take` for its view types.
            for row in rows[(rows >= start) & (rows < end)] - start:
                yield batch.column(0)[int(row)].as_py()
            start = end

    def _open(self) -> pq.ParquetFile:
        try:
            return pq.ParquetFile(self.where, filesystem=self.filesystem)
        except (pa.ArrowException, OSError) as error:
            raise self._damaged(error) from error

    def _damaged(self, error: Exception) -> InputError:
        return InputError(
            f"{self.where} cannot be read as Parquet ({first_line(error)}); "
            "fetch or write it again."
        )


def find_parquet(
    filesystem: pyarrow.fs.FileSystem, folder: str, columns: ColumnNames, *, subset: str | None
) -> ParquetFolder | None:
    """Finds the Parquet files of `folder`; returns `None` if it holds none.

    `subset` names the configuration, where there are several. Raises `InputError` if none of the
    files belongs to a part, or if it is not clear which configuration is meant.
    """
    local = isinstance(filesystem, pyarrow.fs.LocalFileSystem)
    walk = Walk()
    if local:
        seen = places_above(folder) | {place_of(Path(folder))}
        paths = sorted(_local_tables(folder, walk, seen))
    else:
        paths = sorted(_remote_tables(filesystem, folder, walk))
    tables: dict[str, list[PurePosixPath]] = defaultdict(list)
    for path in paths:
        place = PurePosixPath(path).relative_to(folder)
        tables[_configuration(place)].append(place)
    parts = {name: found for name, places in tables.items() if (found := _by_part(places))}
    if not parts:
        if "" not in tables:
            return None
        raise InputError(
            f"No Parquet file in {folder} names its split (found {tables[''][0].name}); "
            "names must begin with train, validation or test, as in train.parquet or "
            "train-00000-of-00002.parquet."
        )
    chosen = _chosen(folder, sorted(parts), subset)
    used = {place for places in parts[chosen].values() for place in places}
    for name, places in tables.items():
        for place in places:
            if place not in used:
                walk.pass_over(_PARTLESS if name == chosen else _UNCHOSEN, f"{folder}/{place}")
    walk.check(rule="all tables must be readable, so mend or remove these")
    return ParquetFolder(
        filesystem=filesystem,
        files={
            part: filesystem.get_file_info([f"{folder}/{place}" for place in places])
            for part, places in parts[chosen].items()
        },
        columns=columns,
        passed_over=walk.passed_over(),
        root=Path(folder) if local else None,
    )


def _local_tables(folder: str, walk: Walk, seen: set[Place], depth: int = 0) -> Iterator[str]:
    for entry in walk.entries(folder):
        if not entry.is_dir():
            yield from _tables([entry.path], walk)
        elif depth == _DEEPEST:
            walk.pass_over(_DEEP, entry.path, files=files_below(entry))
        elif walk.descends(entry, seen):
            yield from _local_tables(entry.path, walk, seen, depth + 1)


def _remote_tables(
    filesystem: pyarrow.fs.FileSystem, folder: str, walk: Walk, depth: int = 0
) -> Iterator[str]:
    for entry in filesystem.get_file_info(pyarrow.fs.FileSelector(folder)):
        if rule := left_out_by_name(entry.base_name):
            walk.pass_over(rule, entry.path)
        elif entry.is_file:
            yield from _tables([entry.path], walk)
        elif depth == _DEEPEST:
            walk.pass_over(_DEEP, entry.path)
        else:
            yield from _remote_tables(filesystem, entry.path, walk, depth + 1)


def _tables(paths: Sequence[str], walk: Walk) -> Iterator[str]:
    for path in paths:
        if PurePosixPath(path).suffix.lower() in SUFFIXES:
            yield path
        else:
            walk.pass_over(_OTHER, path)


def _by_part(places: Sequence[PurePosixPath]) -> dict[str, list[PurePosixPath]]:
    """Returns the files by the part that their first word or a folder names, or else any word."""
    for any_word in (False, True):
        parts: dict[str, list[PurePosixPath]] = defaultdict(list)
        for place in places:
            if part := _part_of(place, any_word=any_word):
                parts[part].append(place)
        if parts:
            return dict(parts)
    return {}


def _part_of(place: PurePosixPath, *, any_word: bool) -> str | None:
    """Tells the part by the file's name, or else by that of the nearest folder that names one."""
    words = _NAMES.split(place.stem) if any_word else _FIRST_WORD.findall(place.stem)
    named = [part for word in words if (part := part_named(word))]
    if len(named) == 1:
        return named[0]
    folders = (part for name in reversed(place.parent.parts) if (part := _folder_part(name)))
    return next(folders, None)


def _folder_part(name: str) -> str | None:
    """Returns the part that the folder's name is, as in `train`, `partial-train`, `split=train`."""
    words = [word for word in _NAMES.split(name.lower()) if word not in _NO_NAMES]
    return part_named(words[0]) if len(words) == 1 else None


def _configuration(place: PurePosixPath) -> str:
    """Returns the folders above that of the part that name neither a part nor shards."""
    named = []
    for name in place.parent.parts:
        if _folder_part(name):
            break
        if set(_NAMES.split(name.lower())) - _NO_NAMES:
            named.append(name)
    return "/".join(named)


def _chosen(folder: str, names: Sequence[str], subset: str | None) -> str:
    """Returns the configuration of `names` that is meant; "" is that of the folder itself."""
    wanted = ("", "default", *(names if len(names) == 1 else ())) if subset is None else (subset,)
    for name in wanted:
        if name in names:
            return name
    known = ", ".join(name or "the folder itself, without a subset" for name in names)
    raise InputError(
        Key("subset"),
        f"={subset!r} is none of the configurations of {folder}, and one must be chosen; "
        f"they are {known}.",
    )
