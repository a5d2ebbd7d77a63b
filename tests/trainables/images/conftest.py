"""Writers of tiny image tasks."""

import json
from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from tests.trainables.images.writers import Png, WriteFolders, WriteParquet

IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


@pytest.fixture(scope="session")
def png() -> Png:
    """Encodes a grey PNG of one value, by which a test knows it again."""

    def encode(value: int) -> bytes:
        buffer = BytesIO()
        Image.new("L", (8, 8), value).save(buffer, "PNG")
        return buffer.getvalue()

    return encode


@pytest.fixture
def write_parquet(tmp_path: Path, png: Png) -> WriteParquet:
    """Writes a Parquet file in the convention of Hugging Face; gives the task's folder."""

    def write(
        labels: Sequence[Any],
        *,
        name: str = "train.parquet",
        names: Sequence[str] | None = ("cat", "dog"),
        images: Sequence[Mapping[str, bytes | str | None]] | None = None,
        label_type: pa.DataType | None = None,
        columns: tuple[str, str] = ("image", "label"),
        row_group_size: int = 5,
    ) -> Path:
        if images is None:
            images = [{"bytes": png(row % 256), "path": None} for row in range(len(labels))]
        image, label = columns
        data = {image: pa.array(images, type=IMAGE), label: pa.array(labels, type=label_type)}
        table = pa.table(data)
        if names is not None:
            features = {
                image: {"_type": "Image"},
                label: {"_type": "ClassLabel", "names": list(names)},
            }
            info = json.dumps({"info": {"features": features}})
            table = table.replace_schema_metadata({"huggingface": info})
        path = tmp_path / "task" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(table, path, row_group_size=row_group_size)
        return tmp_path / "task"

    return write


@pytest.fixture
def write_folders(tmp_path: Path, png: Png) -> WriteFolders:
    """Writes class folders of PNG files from `{class: count}`; gives the task's folder."""

    def write(counts: Mapping[str, int], *, under: str = "") -> Path:
        for index, (name, count) in enumerate(counts.items()):
            folder = tmp_path / "task" / under / name
            folder.mkdir(parents=True)
            for number in range(count):
                (folder / f"{number:03}.png").write_bytes(png(40 * index + number))
        return tmp_path / "task"

    return write
