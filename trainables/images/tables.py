"""Tables of images: their labels as a catalogue, their images as a stream."""

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from PIL import Image

from trainables.errors import InputError, Key, first_line
from trainables.images.catalog import TRAIN, Catalog, Part, PassedOver, RawImage
from trainables.images.decode import open_image
from trainables.images.faults import refusal
from trainables.images.schema import ColumnNames, Columns, Shard, find_columns


def read_tables(
    parts: Mapping[str, Sequence[Shard]], names: ColumnNames, *, image_roots: Sequence[Path] = ()
) -> Catalog:
    """Reads the catalogue of tables whose class names are equal; raises `InputError` else.

    An image that a table has no bytes of is read from its path, if that leads into one of
    `image_roots`; a table can name no other file of the machine. A part that says of all its
    images that they have no label is passed over, unless it is `train`.
    """
    first = parts[TRAIN][0] if TRAIN in parts else next(iter(parts.values()))[0]
    columns = find_columns(first, names)
    labels: dict[str, list[pa.ChunkedArray]] = {}
    for part, shards in parts.items():
        for shard in shards:
            if (other := find_columns(shard, names)) != columns:
                raise InputError(
                    f"{shard.where} and {first.where} differ in their columns or class names "
                    f"({_difference(other, columns)}), but a task's tables must agree; "
                    "write them from one dataset."
                )
        labels[part] = [_label_column(shard, columns) for shard in shards]
    unlabelled = [part for part in labels if part != TRAIN and _has_no_labels(labels[part])]
    labels = {part: found for part, found in labels.items() if part not in unlabelled}

    keys, class_names = _keys_and_names(columns, labels)
    encoded = _encoded({part: parts[part] for part in labels}, labels, keys)
    return Catalog(
        class_names=class_names,
        parts={
            part: _part(parts[part], encoded[part], columns.image, image_roots) for part in labels
        },
        passed_over=tuple(
            PassedOver(
                rule=f"images of {part} without labels (all null or negative)",
                count=sum(len(shard.column(columns.label)) for shard in parts[part]),
                places=tuple(shard.where for shard in parts[part]),
            )
            for part in unlabelled
        ),
    )


def _label_column(shard: Shard, columns: Columns) -> pa.ChunkedArray:
    """Reads the labels as int64 or text; a missing one is null."""
    try:
        return shard.column(columns.label).cast(columns.label_type)
    except pa.ArrowInvalid as error:
        raise InputError(
            f"The labels in column {columns.label!r} of {shard.where} cannot be read "
            f"({first_line(error)}), but labels must be text or whole numbers below 2**63; write "
            "them so, or set ",
            Key("label_column"),
            " to another column.",
        ) from error


def _has_no_labels(columns: Sequence[pa.ChunkedArray]) -> bool:
    """Tells whether all labels are null or negative, which marks images without labels."""
    return any(map(len, columns)) and all(
        column.null_count == len(column)
        or (pa.types.is_integer(column.type) and pc.max(column).as_py() < 0)
        for column in columns
    )


def _keys_and_names(
    columns: Columns, labels: Mapping[str, Sequence[pa.ChunkedArray]]
) -> tuple[list[Any], tuple[str, ...]]:
    """Returns the values that labels may have, and what their classes are called."""
    if columns.class_names is not None:
        text = pa.types.is_string(columns.label_type)
        keys = list(columns.class_names if text else range(len(columns.class_names)))
        return keys, columns.class_names
    named = labels.get(TRAIN) or next(iter(labels.values()))
    keys = sorted({k for column in named for k in pc.unique(column.drop_null()).to_pylist()})
    return keys, tuple(map(str, keys))


def _encoded(
    parts: Mapping[str, Sequence[Shard]],
    labels: Mapping[str, Sequence[pa.ChunkedArray]],
    keys: list[Any],
) -> dict[str, list[NDArray[np.int64]]]:
    """Returns the labels of each shard as classes; refuses all that are none at once."""
    encoded: dict[str, list[NDArray[np.int64]]] = {}
    nulls, strangers = [], []
    for part, shards in parts.items():
        encoded[part] = []
        for shard, column in zip(shards, labels[part], strict=True):
            known = pa.array(keys, type=column.type)
            found = pc.index_in(column, value_set=known)
            for row in np.flatnonzero(found.is_null().to_numpy()):
                value, where = column[int(row)].as_py(), f"{shard.where}, row {row}"
                if value is None:
                    nulls.append(f"the label at {where}, is null")
                else:
                    classes = f"{len(keys)} classes"
                    strangers.append(f"the label {value!r} at {where}, is none of the {classes}")
            encoded[part].append(found.fill_null(-1).to_numpy().astype(np.int64))
    if nulls:
        raise refusal(nulls, rule="every image needs a label, so set it or remove the row")
    if strangers:
        raise refusal(
            strangers,
            rule=f"the classes are {_few(keys)}, and a negative label marks an image without "
            "one, so correct it or remove the row",
        )
    return encoded


def _part(
    shards: Sequence[Shard],
    encoded: Sequence[NDArray[np.int64]],
    image_column: str,
    image_roots: Sequence[Path],
) -> Part:
    flat = np.concatenate(encoded)
    starts = np.cumsum([0, *map(len, encoded)])
    return Part(
        labels=flat,
        rows=np.arange(len(flat)),
        images=partial(_images, shards, starts, image_column, image_roots),
    )


def _images(
    shards: Sequence[Shard],
    starts: NDArray[np.intp],
    column: str,
    image_roots: Sequence[Path],
    rows: NDArray[np.intp],
) -> Iterator[RawImage]:
    for shard, start, end in zip(shards, starts, starts[1:], strict=False):
        inside = rows[(rows >= start) & (rows < end)] - start
        if not inside.size:
            continue
        for row, value in zip(inside, shard.values(column, inside), strict=True):
            yield RawImage(
                where=f"{shard.where}, row {row}",
                open=partial(_open, value, Path(shard.where).parent, image_roots),
            )


def _open(value: Any, folder: Path, image_roots: Sequence[Path]) -> Image.Image:
    """Opens the image in a table's cell; a relative path in it begins at the table's `folder`."""
    content = value if isinstance(value, dict) else {"bytes": value}
    if content.get("bytes") is not None:
        return open_image(BytesIO(content["bytes"]))
    if not content.get("path"):
        raise ValueError("it is null")
    path = (folder / content["path"]).resolve()
    if not any(path.is_relative_to(root.resolve()) for root in image_roots):
        raise ValueError(
            f"its bytes are null and its path {content['path']!r} leads out of the task's folder"
        )
    if not path.is_file():
        raise ValueError(f"its bytes are null and its path {content['path']!r} leads to no file")
    return open_image(path)


def _difference(one: Columns, other: Columns) -> str:
    names, others = set(one.class_names or ()), set(other.class_names or ())
    if (one.image, one.label) != (other.image, other.label):
        return f"{one.image}, {one.label} against {other.image}, {other.label}"
    if one.label_type != other.label_type:
        return f"labels of {one.label_type} against {other.label_type}"
    return _few(sorted(names ^ others)) or "the same classes in another order"


def _few(values: Sequence[Any]) -> str:
    shown = ", ".join(map(str, values[:6]))
    return f"{shown}, …" if len(values) > 6 else shown
