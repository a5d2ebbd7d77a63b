"""Hugging Face datasets, by name."""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from trainables.errors import InputError, Key, first_line
from trainables.images.catalog import Catalog, PassedOver, part_named
from trainables.images.schema import ColumnNames
from trainables.images.tables import read_tables

_BATCH_ROWS = 256
_PROBE_SECONDS = 5.0
_NO_CONFIGURATION = re.compile(r"Config name is missing|BuilderConfig .* not found")


@dataclass(frozen=True, kw_only=True)
class HubDataset:
    """The splits of a Hugging Face dataset that are train, validation or test."""

    splits: Mapping[str, Any]
    """`datasets.Dataset` by part."""
    columns: ColumnNames
    passed_over: tuple[PassedOver, ...]

    def identity(self) -> list[Any]:
        return [
            [part, split.num_rows, sorted(file["filename"] for file in split.cache_files)]
            for part, split in sorted(self.splits.items())
        ]

    def read(self) -> Catalog:
        import datasets  # as in `load_hub`
        from huggingface_hub.constants import HF_HUB_CACHE

        return read_tables(
            {part: [_HubShard(where=part, split=s)] for part, s in self.splits.items()},
            self.columns,
            image_roots=[
                Path(datasets.config.DOWNLOADED_DATASETS_PATH),
                Path(datasets.config.EXTRACTED_DATASETS_PATH),
                Path(HF_HUB_CACHE),
            ],
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

    def values(self, name: str, rows: NDArray[np.intp]) -> Iterator[Any]:
        wanted = self.split.select_columns([name]).select(rows).with_format("arrow")
        for table in wanted.iter(_BATCH_ROWS):
            yield from table.column(name).to_pylist()


def load_hub(
    name: str,
    columns: ColumnNames,
    *,
    subset: str | None,
    revision: str | None,
    near: str = "",
) -> HubDataset:
    """Returns the dataset `name` of the Hub, downloaded where this machine does not have it yet.

    `near` names in brackets a folder that may be meant instead. The network is tried once: the
    client itself would try for half a minute. Raises `InputError` when the dataset cannot be had,
    because there is no network or no such dataset.
    """
    import datasets  # a second's work, which only this kind of source needs

    try:
        with nullcontext() if _answers(name, revision, near=near) else _offline():
            splits = datasets.load_dataset(name, subset, revision=revision)
    except InputError:
        raise
    except Exception as error:  # the client lets its HTTP library's own errors through
        if _NO_CONFIGURATION.search(str(error)):
            raise InputError(
                Key("subset"),
                f"={subset!r} is none of the configurations of the Hugging Face dataset {name!r}, "
                f"and one must be chosen; they are {_configurations(error)}.",
            ) from error
        raise InputError(
            Key("source"),
            f"={name!r} is no folder here{near}, and the Hugging Face dataset of that name could "
            f"not be reached ({first_line(error)}); give a local folder of Parquet files or class "
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
    unused = tuple(name for name in splits if name not in chosen.values())
    rule = "images of splits that are not the first named train, validation or test"
    count = sum(splits[name].num_rows for name in unused)
    return HubDataset(
        splits={part: splits[name] for part, name in chosen.items()},
        columns=columns,
        passed_over=(PassedOver(rule=rule, count=count, places=unused),) if unused else (),
    )


def _answers(name: str, revision: str | None, *, near: str) -> bool:
    """Asks the Hub once for the dataset; False where nothing answers.

    Raises `InputError` where there is none of that name.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError

    try:
        HfApi().dataset_info(name, revision=revision, timeout=_PROBE_SECONDS)
    except GatedRepoError:
        return True  # the client will say what to do
    except RepositoryNotFoundError as error:
        raise InputError(
            Key("source"),
            f"={name!r} is no folder here{near}, and the Hugging Face Hub has no dataset of that "
            "name that may be read from here; correct the path or the name, or log in.",
        ) from error
    except HfHubHTTPError as error:
        return error.response.status_code < 500
    except Exception:  # the HTTP library's own errors; the dataset may be on this machine
        return False
    return True


@contextmanager
def _offline() -> Iterator[None]:
    """Has the client look on this machine alone."""
    import datasets

    before = datasets.config.HF_HUB_OFFLINE
    datasets.config.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        datasets.config.HF_HUB_OFFLINE = before


def _configurations(error: Exception) -> str:
    """Returns the names that the client lists, which it writes as Python does."""
    listed = re.search(r"\[(.*?)\]", str(error))
    return listed[1].replace("'", "") if listed else "told by its page"
