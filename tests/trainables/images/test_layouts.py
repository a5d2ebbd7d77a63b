"""The layouts and column types in which datasets of Hugging Face are found."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.trainables.images.writers import Png, WriteParquet
from trainables.errors import InputError
from trainables.images.hub import load_hub
from trainables.images.schema import ColumnNames
from trainables.images.store import open_store
from trainables.images.tasks import TaskSource, TaskSummary, inspect

TEN_EACH = [0, 1] * 10


def summary(folder: Path, **options: Any) -> TaskSummary:
    return inspect(TaskSource(source=str(folder), **options))


def images_in(folder: Path, **options: Any) -> int:
    return sum(summary(folder, **options).images.values())


@pytest.mark.parametrize(
    ("names", "images"),
    [
        (["default/train/0000.parquet", "default/test/0000.parquet"], 40),
        (["plain_text/train-00000-of-00001.parquet"], 20),
        (["default/partial-train/0000.parquet", "default/partial-train/0001.parquet"], 40),
        (["train/shard-a/0.parquet", "train/shard-b/1.parquet"], 40),
        (["data/0/train-0.parquet", "data/1/train-1.parquet"], 40),
        (["split=train/part-0.parquet", "split=test/part-0.parquet"], 40),
        (["train.parquet/part-00000.parquet", "train.parquet/part-00001.parquet"], 40),
        (["flowers-train-00000.parquet", "flowers-test-00000.parquet"], 40),
        (["TRAIN.PARQUET", "Test.pq"], 40),
    ],
)
def test_shards_are_found(write_parquet: WriteParquet, names: Sequence[str], images: int) -> None:
    for name in names:
        folder = write_parquet(TEN_EACH, name=name)
    found = summary(folder)
    assert sum(found.images.values()) == images
    assert found.passed_over == ()


@pytest.fixture
def configurations(write_parquet: WriteParquet) -> Path:
    write_parquet([0, 1] * 5, name="small/train.parquet")
    write_parquet([0, 1] * 5, name="small/test.parquet")
    return write_parquet(TEN_EACH, name="data/large/train-0.parquet")


def test_of_several_configurations_one_must_be_chosen(configurations: Path) -> None:
    for subset in (None, "medium"):
        with pytest.raises(InputError, match=f"subset={subset!r} .* they are large, small"):
            summary(configurations, subset=subset)
    assert images_in(configurations, subset="small") == 20
    large = summary(configurations, subset="large")
    assert sum(large.images.values()) == 20
    (passed,) = large.passed_over
    assert passed.count == 2
    assert "task.subset does not choose" in passed.rule


def test_the_default_configuration_is_chosen(
    configurations: Path, write_parquet: WriteParquet
) -> None:
    write_parquet([0, 1] * 3, name="default/train.parquet")
    assert images_in(configurations) == 6
    write_parquet([0, 1] * 4, name="train.parquet")
    assert images_in(configurations) == 8


@pytest.mark.parametrize(
    "kind",
    [
        *(pa.int8(), pa.int16(), pa.int32(), pa.int64()),
        *(pa.uint8(), pa.uint16(), pa.uint32(), pa.uint64()),
    ],
)
@pytest.mark.parametrize("names", [("cat", "dog"), None])
def test_every_integer_is_a_label(
    write_parquet: WriteParquet, kind: pa.DataType, names: Sequence[str] | None
) -> None:
    folder = write_parquet(TEN_EACH, label_type=kind, names=names)
    assert summary(folder).class_names == (names or ("0", "1"))


@pytest.mark.parametrize(
    "kind",
    [
        *(pa.string(), pa.large_string(), pa.string_view()),
        pa.dictionary(pa.int8(), pa.large_string()),
        pa.dictionary(pa.uint16(), pa.string()),
    ],
)
@pytest.mark.parametrize("names", [("dog", "cat"), None])
def test_every_text_is_a_label(
    write_parquet: WriteParquet, kind: pa.DataType, names: Sequence[str] | None
) -> None:
    folder = write_parquet(["cat", "dog"] * 10, label_type=kind, names=names)
    assert summary(folder).class_names == (names or ("cat", "dog"))


def test_a_number_beyond_all_labels_is_told(write_parquet: WriteParquet) -> None:
    folder = write_parquet([2**63, 1] * 10, label_type=pa.uint64(), names=None)
    with pytest.raises(InputError, match=r"whole numbers below 2\*\*63"):
        summary(folder)


@pytest.mark.parametrize(
    "kind",
    [
        *(pa.binary(), pa.large_binary(), pa.binary_view()),
        pa.dictionary(pa.int8(), pa.binary()),
        pa.struct([("bytes", pa.binary_view()), ("path", pa.string_view())]),
        pa.struct([("path", pa.large_string()), ("bytes", pa.large_binary())]),
    ],
)
def test_every_kind_of_bytes_is_an_image(tmp_path: Path, png: Png, kind: pa.DataType) -> None:
    images: list[Any] = [png(value) for value in range(20)]
    if pa.types.is_struct(kind):
        images = [{"bytes": content, "path": "x.png"} for content in images]
    table = pa.table({"image": pa.array(images, type=kind), "label": TEN_EACH})
    (tmp_path / "task").mkdir()
    pq.write_table(table, tmp_path / "task" / "train.parquet")
    source = TaskSource(source=str(tmp_path / "task"))
    store = open_store(source, resolution=4, cache_dir=tmp_path / "cache")
    values = [v for split in store.splits.values() for v in split.images[:, 0, 0, 0].tolist()]
    assert sorted(values) == list(range(20))


def test_one_of_several_label_columns_is_named(write_parquet: WriteParquet) -> None:
    folder = write_parquet(TEN_EACH, columns=("img", "coarse"))
    table = pq.read_table(folder / "train.parquet")
    table = table.append_column("fine", pa.array([0, 1, 2, 3] * 5))
    features = {
        "img": {"_type": "Image"},
        "coarse": {"_type": "ClassLabel", "names": ["x", "y"]},
        "fine": {"_type": "ClassLabel", "num_classes": 4},
    }
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    pq.write_table(table.replace_schema_metadata(metadata), folder / "train.parquet")
    with pytest.raises(
        InputError, match=r"2 columns .* set label_column to one of coarse, fine\.$"
    ):
        summary(folder)
    assert summary(folder, label_column="fine").class_names == ("0", "1", "2", "3")
    assert summary(folder, label_column="coarse").class_names == ("x", "y")


@pytest.mark.parametrize("metadata", ['{"info": null}', '{"info": {"features": null}}', "{}"])
def test_metadata_may_say_nothing(write_parquet: WriteParquet, metadata: str) -> None:
    folder = write_parquet(TEN_EACH, names=None)
    table = pq.read_table(folder / "train.parquet")
    pq.write_table(
        table.replace_schema_metadata({"huggingface": metadata}), folder / "train.parquet"
    )
    assert summary(folder).class_names == ("0", "1")


def test_a_configuration_of_the_hub_must_be_chosen(
    tmp_path: Path, write_parquet: WriteParquet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The client's own refusal, which it makes of a folder as of a dataset on the Hub."""
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path)
    for name in ("small", "large"):
        folder = write_parquet(TEN_EACH, name=f"{name}/train.parquet")
    (folder / "README.md").write_text(
        "---\nconfigs:\n"
        "- config_name: small\n  data_files: small/*.parquet\n"
        "- config_name: large\n  data_files: large/*.parquet\n---\n"
    )
    for subset in (None, "medium"):
        with pytest.raises(InputError, match=f"subset={subset!r} is none .* they are small, large"):
            load_hub(str(folder), ColumnNames(), subset=subset, revision=None)
