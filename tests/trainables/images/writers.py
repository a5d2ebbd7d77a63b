"""The types of the fixtures that write tiny image tasks."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa

Png = Callable[[int], bytes]
"""Encodes a grey PNG of one value."""


class WriteParquet(Protocol):
    """Writes a Parquet file of images and labels, and gives the task's folder."""

    def __call__(
        self,
        labels: Sequence[Any],
        *,
        name: str = ...,
        names: Sequence[str] | None = ...,
        images: Sequence[Mapping[str, bytes | str | None]] | None = ...,
        label_type: pa.DataType | None = ...,
        columns: tuple[str, str] = ...,
        row_group_size: int = ...,
    ) -> Path: ...


class WriteFolders(Protocol):
    """Writes class folders of PNG files from `{class: count}`, and gives the task's folder."""

    def __call__(self, counts: Mapping[str, int], *, under: str = ...) -> Path: ...
