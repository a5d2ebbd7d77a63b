"""Folders of Parquet files, on this machine or wherever pyarrow reaches."""

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import PurePosixPath
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.fs
import pyarrow.parquet as pq
from numpy.typing import NDArray

from trainables.errors import InputError, first_line
from trainables.images.catalog import Catalog, part_named
from trainables.images.schema import ColumnNames
from trainables.images.tables import read_tables

_BATCH_ROWS = 256


@dataclass(frozen=True, kw_only=True)
class ParquetFolder:
    """The Parquet files of a task: `train.parquet`, or shards like `train-00000-of-00002.parquet`.

    They lie in the folder itself or under `data/`, or in folders named after the part.
    """

    filesystem: pyarrow.fs.FileSystem
    files: dict[str, list[pyarrow.fs.FileInfo]]
    """By part, in the order of their names."""
    columns: ColumnNames
    unused: tuple[str, ...]

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

    def batches(self, name: str, rows: NDArray[np.intp]) -> Iterator[pa.Array]:
        with self._open() as file:
            sizes = [file.metadata.row_group(g).num_rows for g in range(file.num_row_groups)]
            end = 0
            for group, size in enumerate(sizes):
                start, end = end, end + size
                if ((rows >= start) & (rows < end)).any():
                    yield from self._group_batches(file, group, start, name, rows)

    def _group_batches(
        self, file: pq.ParquetFile, group: int, start: int, name: str, rows: NDArray[np.intp]
    ) -> Iterator[pa.Array]:
        batches = file.iter_batches(_BATCH_ROWS, row_groups=[group], columns=[name])
        while True:
            try:
                batch = next(batches, None)
            except (pa.ArrowException, OSError) as error:
                raise self._damaged(error) from error
            if batch is None:
                return
            end = start + batch.num_rows
            inside = rows[(rows >= start) & (rows < end)] - start
            if inside.size:
                yield batch.column(0).take(pa.array(inside))
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
    filesystem: pyarrow.fs.FileSystem, folder: str, columns: ColumnNames
) -> ParquetFolder | None:
    """Finds the Parquet files of `folder`; returns `None` if it holds none.

    Raises `InputError` if none of them belongs to a part.
    """
    found = list(_parquet_files(filesystem, folder))
    if not found:
        return None
    files: dict[str, list[pyarrow.fs.FileInfo]] = defaultdict(list)
    unused = []
    for file in sorted(found, key=lambda file: str(file.path)):
        if part := _part_of(PurePosixPath(file.path)):
            files[part].append(file)
        else:
            unused.append(str(file.path))
    if not files:
        raise InputError(
            f"No Parquet file in {folder} names its split (found {PurePosixPath(unused[0]).name}); "
            "names must begin with train, validation or test, as in train.parquet or "
            "train-00000-of-00002.parquet."
        )
    return ParquetFolder(
        filesystem=filesystem, files=dict(files), columns=columns, unused=tuple(unused)
    )


def _parquet_files(filesystem: pyarrow.fs.FileSystem, folder: str) -> Iterator[pyarrow.fs.FileInfo]:
    for entry in filesystem.get_file_info(pyarrow.fs.FileSelector(folder)):
        name = entry.base_name
        if entry.type == pyarrow.fs.FileType.File and name.endswith(".parquet"):
            yield entry
        elif entry.type == pyarrow.fs.FileType.Directory and (name == "data" or part_named(name)):
            yield from _parquet_files(filesystem, entry.path)


def _part_of(path: PurePosixPath) -> str | None:
    """Tells the part by the file's first word, or else by its folder's name."""
    word = path.stem.replace("_", "-").replace(".", "-").split("-")[0]
    return part_named(word) or part_named(path.parent.name)
