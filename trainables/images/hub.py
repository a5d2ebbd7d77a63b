"""Hugging Face datasets, by name."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from trainables.errors import InputError, Key, first_line
from trainables.images.catalog import Catalog, part_named
from trainables.images.schema import ColumnNames
from trainables.images.tables import read_tables

_BATCH_ROWS = 256


@dataclass(frozen=True, kw_only=True)
class HubDataset:
    """The splits of a Hugging Face dataset that are train, validation or test."""

    splits: Mapping[str, Any]
    """`datasets.Dataset` by part."""
    columns: ColumnNames
    unused: tuple[str, ...]

    def identity(self) -> list[Any]:
        return [
            [part, split.num_rows, sorted(file["filename"] for file in split.cache_files)]
            for part, split in sorted(self.splits.items())
        ]

    def read(self) -> Catalog:
        return read_tables(
            {part: [_HubShard(where=part, split=s)] for part, s in self.splits.items()},
            self.columns,
        )


@dataclass(frozen=True, kw_only=True)
class _HubShard:
    where: str
    split: Any

    @property
    def schema(self) -> pa.Schema:
        return self.split.features.arrow_schema

    def column(self, name: str) -> pa.ChunkedArray:
        return self.split.select_columns([name]).with_format("arrow")[:].column(name)

    def batches(self, name: str, rows: NDArray[np.intp]) -> Iterator[pa.Array]:
        wanted = self.split.select_columns([name]).select(rows).with_format("arrow")
        for table in wanted.iter(_BATCH_ROWS):
            yield table.column(name)


def load_hub(
    name: str, columns: ColumnNames, *, subset: str | None, revision: str | None
) -> HubDataset:
    """Returns the dataset `name` of the Hub, downloaded where this machine does not have it yet.

    Raises `InputError` when it cannot be had, because there is no network or no such dataset.
    """
    import datasets  # a second's work, which only this kind of source needs

    try:
        splits = datasets.load_dataset(name, subset, revision=revision)
    except Exception as error:  # the client lets its HTTP library's own errors through
        raise InputError(
            Key("source"),
            f"={name!r} is no folder here, and the Hugging Face dataset of that name could not be "
            f"reached ({first_line(error)}); give a local folder of Parquet files or class "
            "folders, or connect this machine to the network.",
        ) from error
    return pick_splits(splits, columns)


def pick_splits(splits: Mapping[str, Any], columns: ColumnNames) -> HubDataset:
    """Finds the parts among `splits`, a `datasets.DatasetDict` or the like; the first of each."""
    chosen: dict[str, str] = {}
    for name in splits:
        if part := part_named(name):
            chosen.setdefault(part, name)
    if not chosen:
        raise InputError(
            f"The dataset's splits are {', '.join(splits)}, but images to train on must be named "
            "'train'; choose another dataset or ",
            Key("subset"),
            ".",
        )
    return HubDataset(
        splits={part: splits[name] for part, name in chosen.items()},
        columns=columns,
        unused=tuple(name for name in splits if name not in chosen.values()),
    )
