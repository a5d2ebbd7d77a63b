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

from trainables.errors import InputError
from trainables.images.catalog import TRAIN, Catalog, Part, RawImage
from trainables.images.schema import ColumnNames, Columns, Shard, find_columns


def read_tables(parts: Mapping[str, Sequence[Shard]], names: ColumnNames) -> Catalog:
    """Reads the catalogue of tables whose class names are equal; raises `InputError` else."""
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

    class_names = columns.class_names
    if class_names is None:
        named = labels.get(TRAIN) or next(iter(labels.values()))
        keys = sorted({key for column in named for key in pc.unique(column).to_pylist()})
        class_names = tuple(map(str, keys))
    else:
        text = pa.types.is_string(columns.label_type)
        keys = list(class_names if text else range(len(class_names)))
    return Catalog(
        class_names=class_names,
        parts={
            part: _part(shards, labels[part], image_column=columns.image, keys=keys)
            for part, shards in parts.items()
        },
    )


def _label_column(shard: Shard, columns: Columns) -> pa.ChunkedArray:
    """Reads the labels as int64 or text, none of them null."""
    column = shard.column(columns.label)
    if column.null_count:
        row = pc.index(column.is_null(), True).as_py()
        raise InputError(
            f"The label at {shard.where}, row {row}, is null, but every image needs one; "
            "set it or remove the row."
        )
    return column.cast(columns.label_type)


def _part(
    shards: Sequence[Shard],
    labels: Sequence[pa.ChunkedArray],
    *,
    image_column: str,
    keys: list[Any],
) -> Part:
    known = pa.array(keys, type=labels[0].type)
    encoded = []
    for shard, column in zip(shards, labels, strict=True):
        found = pc.index_in(column, value_set=known)
        if found.null_count:
            row = pc.index(found.is_null(), True).as_py()
            raise InputError(
                f"The label {column[row].as_py()!r} at {shard.where}, row {row}, is none of the "
                f"{len(keys)} classes ({_few(keys)}); a negative one marks a part without "
                "labels, so correct it or leave the part out."
            )
        encoded.append(found.to_numpy().astype(np.int64))
    flat = np.concatenate(encoded)
    starts = np.cumsum([0, *map(len, encoded)])
    return Part(
        labels=flat,
        rows=np.arange(len(flat)),
        images=partial(_images, shards, starts, image_column),
    )


def _images(
    shards: Sequence[Shard], starts: NDArray[np.intp], column: str, rows: NDArray[np.intp]
) -> Iterator[RawImage]:
    for shard, start, end in zip(shards, starts, starts[1:], strict=False):
        inside = rows[(rows >= start) & (rows < end)] - start
        if not inside.size:
            continue
        numbers = iter(inside)
        for batch in shard.batches(column, inside):
            for value in batch.to_pylist():
                where = f"{shard.where}, row {next(numbers)}"
                yield RawImage(where=where, open=partial(_open, value, where))


def _open(value: Any, where: str) -> Image.Image:
    content = value if isinstance(value, dict) else {"bytes": value}
    if content.get("bytes") is not None:
        return Image.open(BytesIO(content["bytes"]))
    path = Path(content.get("path") or "")
    if path.is_absolute():
        return Image.open(path)
    raise InputError(
        f"The image at {where} is null, but every row needs its bytes; add them or remove the row."
    )


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
