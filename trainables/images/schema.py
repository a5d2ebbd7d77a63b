"""The schema of a table of images, in the convention of Hugging Face datasets.

An image is `struct<bytes, path>` or plain bytes. The schema metadata `huggingface` says which
column is the image, which the label, and what the classes are called.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from trainables.errors import InputError, Key


@dataclass(frozen=True, kw_only=True)
class ColumnNames:
    """The columns that the task names; `None` is found from the schema."""

    image: str | None = None
    label: str | None = None


class Shard(Protocol):
    """One table of an official part: a Parquet file, or a split of a Hugging Face dataset."""

    @property
    def where(self) -> str:
        """Its name, as messages have it."""
        ...

    @property
    def schema(self) -> pa.Schema: ...

    def column(self, name: str) -> pa.ChunkedArray:
        """Reads a whole column."""
        ...

    def batches(self, name: str, rows: NDArray[np.intp]) -> Iterator[pa.Array]:
        """Streams the column's values at some ascending rows, in that order."""
        ...


@dataclass(frozen=True, kw_only=True)
class Columns:
    """The columns of a table's images and labels, as its schema has them."""

    image: str
    """Name of the column that holds images."""
    label: str
    """Name of the column that holds labels."""
    label_type: pa.DataType
    """int64 or text."""
    class_names: tuple[str, ...] | None
    """`None` where the schema names none: the labels' own values are the names."""


def find_columns(shard: Shard, names: ColumnNames) -> Columns:
    """Finds the columns that `names` asks for or the schema makes plain; else `InputError`."""
    features = _features(shard)
    images = [name for name, feature in features.items() if feature.get("_type") == "Image"]
    if not images:
        images = [field.name for field in shard.schema if _holds_images(field.type)]
    image = _choose(shard, names.image, images, usual="image")

    labels = [name for name, feature in features.items() if feature.get("_type") == "ClassLabel"]
    label = _choose(shard, names.label, labels or _scalar_columns(shard, image), usual="label")
    _check_image(shard, image)
    return Columns(
        image=image,
        label=label,
        label_type=_checked_label_type(shard, label),
        class_names=_class_names(features.get(label, {})),
    )


def _features(shard: Shard) -> dict[str, dict[str, Any]]:
    metadata = shard.schema.metadata or {}
    try:
        features = json.loads(metadata.get(b"huggingface", b"{}")).get("info", {})
    except (ValueError, AttributeError) as error:
        raise InputError(
            f"The schema metadata 'huggingface' of {shard.where} is not a JSON object with "
            f"'info' ({error}); write the file again."
        ) from error
    return {
        name: feature
        for name, feature in features.get("features", {}).items()
        if isinstance(feature, dict) and name in shard.schema.names
    }


def _choose(shard: Shard, named: str | None, candidates: Sequence[str], *, usual: str) -> str:
    """Returns the column that the config names, or else the only one that can be meant."""
    key = Key(f"{usual}_column")
    columns = ", ".join(shard.schema.names)
    if named is not None:
        if named not in shard.schema.names:
            raise InputError(
                key, f"={named!r} is not a column of {shard.where}; its columns are {columns}."
            )
        return named
    if len(candidates) == 1:
        return candidates[0]
    if usual in candidates:
        return usual
    raise InputError(
        f"{shard.where} has {len(candidates) or 'no'} columns that may be the {usual}, and one "
        "must be; set ",
        key,
        f" to one of its columns: {columns}.",
    )


def _scalar_columns(shard: Shard, image: str) -> list[str]:
    # Lists are let through, so that a multi-label table is refused by its own message.
    return [
        field.name
        for field in shard.schema
        if field.name != image and (_is_list(field.type) or _label_type(field.type) is not None)
    ]


def _check_image(shard: Shard, image: str) -> None:
    kind = shard.schema.field(image).type
    if not _holds_images(kind):
        raise InputError(
            f"Column {image!r} of {shard.where} holds {kind}, but images must be "
            "struct<bytes, path> or bytes of an image file; set ",
            Key("image_column"),
            " to such a column.",
        )


def _checked_label_type(shard: Shard, label: str) -> pa.DataType:
    kind = shard.schema.field(label).type
    if _is_list(kind):
        raise InputError(
            f"Column {label!r} of {shard.where} holds lists ({kind}), which means several labels "
            "an image, but a task has exactly one; set ",
            Key("label_column"),
            " to a single-label column.",
        )
    if (label_type := _label_type(kind)) is None:
        raise InputError(
            f"Column {label!r} of {shard.where} holds {kind}, but labels must be whole numbers "
            "or text; set ",
            Key("label_column"),
            " to such a column.",
        )
    return label_type


def _label_type(kind: pa.DataType) -> pa.DataType | None:
    """Returns the type as which labels of `kind` are read: int64 or text; `None` for no labels."""
    if pa.types.is_dictionary(kind):
        return _label_type(kind.value_type)
    if pa.types.is_integer(kind):
        return pa.int64()
    if pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_boolean(kind):
        return pa.string()
    return None


def _class_names(feature: Mapping[str, Any]) -> tuple[str, ...] | None:
    if names := feature.get("names"):
        return tuple(map(str, names))
    if count := feature.get("num_classes"):
        return tuple(str(index) for index in range(count))
    return None


def _holds_images(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        return "bytes" in (field.name for field in kind)
    return any(is_kind(kind) for is_kind in (pa.types.is_binary, pa.types.is_large_binary))


def _is_list(kind: pa.DataType) -> bool:
    of_lists = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
    return any(is_kind(kind) for is_kind in of_lists)
