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

_TEXT = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view)
_BYTES = (
    pa.types.is_binary,
    pa.types.is_large_binary,
    pa.types.is_binary_view,
    pa.types.is_fixed_size_binary,
)
_LISTS = (
    pa.types.is_list,
    pa.types.is_large_list,
    pa.types.is_fixed_size_list,
    pa.types.is_list_view,
    pa.types.is_large_list_view,
)


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

    def values(self, name: str, rows: NDArray[np.intp]) -> Iterator[Any]:
        """Streams the column's values at some ascending rows, in that order, as plain objects."""
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
    """Returns what Hugging Face's metadata say of the columns; nothing where there are none."""
    metadata = shard.schema.metadata or {}
    try:
        info = json.loads(metadata.get(b"huggingface", b"{}")).get("info") or {}
        features = (info.get("features") or {}).items()
    except (ValueError, AttributeError) as error:
        raise InputError(
            f"The schema metadata 'huggingface' of {shard.where} is not a JSON object with "
            f"'info' ({error}); write the file again."
        ) from error
    return {
        name: feature
        for name, feature in features
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
    if candidates:
        raise InputError(
            f"{shard.where} has {len(candidates)} columns that may be the {usual}, and one must "
            "be; set ",
            key,
            f" to one of {', '.join(candidates)}.",
        )
    kinds = ", ".join(f"{field.name} ({field.type})" for field in shard.schema)
    rule = {"image": "holds struct<bytes, path> or the bytes of image files"}
    raise InputError(
        f"{shard.where} has no columns that may be the {usual}, and one must be, which "
        f"{rule.get(usual, 'holds whole numbers or text')}; write such a column, the file's are "
        f"{kinds}."
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
    if pa.types.is_dictionary(kind) or pa.types.is_run_end_encoded(kind):
        return _label_type(kind.value_type)
    if pa.types.is_integer(kind):
        return pa.int64()
    if any(is_text(kind) for is_text in _TEXT) or pa.types.is_boolean(kind):
        return pa.string()
    return None


def _class_names(feature: Mapping[str, Any]) -> tuple[str, ...] | None:
    if names := feature.get("names"):
        return tuple(map(str, names))
    if count := feature.get("num_classes"):
        return tuple(str(index) for index in range(count))
    return None


def _holds_images(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        return _holds_images(kind.value_type)
    if pa.types.is_struct(kind):
        return "bytes" in (field.name for field in kind)
    return any(is_bytes(kind) for is_bytes in _BYTES)


def _is_list(kind: pa.DataType) -> bool:
    return any(is_list(kind) for is_list in _LISTS)
