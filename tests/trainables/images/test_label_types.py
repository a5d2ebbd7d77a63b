"""Tables as people and libraries write them: types, columns, shards and configurations."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.trainables.images.test_tasks import TEN_EACH, refused, summary
from tests.trainables.images.writers import Png, WriteParquet
from trainables.errors import keys_of
from trainables.images.store import open_store
from trainables.images.tasks import TaskSource, inspect

INTEGERS = [pa.int8(), pa.uint8(), pa.int16(), pa.uint16(), pa.int32(), pa.uint32(), pa.uint64()]
TEXTS = [pa.string(), pa.large_string(), pa.string_view(), pa.dictionary(pa.int8(), pa.string())]


@pytest.mark.parametrize("kind", INTEGERS)
def test_every_integer_is_a_label(write_parquet: WriteParquet, kind: pa.DataType) -> None:
    found = summary(write_parquet(TEN_EACH, label_type=kind, names=None))
    assert found.class_names == ("0", "1")
    assert sum(found.images.values()) == 20


@pytest.mark.parametrize("named", [True, False])
@pytest.mark.parametrize("kind", TEXTS)
def test_every_text_is_a_label(
    write_parquet: WriteParquet, kind: pa.DataType, *, named: bool
) -> None:
    names = ("dog", "cat") if named else None
    folder = write_parquet(["cat", "dog"] * 10, names=names, label_type=kind)
    assert summary(folder).class_names == (("dog", "cat") if named else ("cat", "dog"))


def test_truth_values_are_labels(write_parquet: WriteParquet) -> None:
    folder = write_parquet([True, False] * 10, names=None)
    assert summary(folder).class_names == ("false", "true")


def test_labels_beyond_int64_are_refused(write_parquet: WriteParquet) -> None:
    folder = write_parquet([2**64 - 1, 1] * 10, names=None, label_type=pa.uint64())
    assert "labels must be text or whole numbers below 2**63" in refused(folder)


IMAGES = [pa.binary(), pa.large_binary(), pa.binary_view()]


@pytest.mark.parametrize("kind", IMAGES)
def test_every_kind_of_bytes_is_an_image(tmp_path: Path, png: Png, kind: pa.DataType) -> None:
    pngs = [png(10 * row) for row in range(20)]
    table = pa.table({"image": pa.array(pngs, type=kind), "label": TEN_EACH})
    (tmp_path / "task").mkdir()
    pq.write_table(table, tmp_path / "task" / "train.parquet", row_group_size=7)
    source = TaskSource(source=str(tmp_path / "task"))
    store = open_store(source, resolution=4, cache_dir=tmp_path / "cache")
    values = [split.images[:, 0, 0, 0].numpy() for split in store.splits.values()]
    assert sorted(np.concatenate(values).tolist()) == [10 * row for row in range(20)]


def two_labels(tmp_path: Path, png: Png) -> Path:
    table = pa.table(
        {
            "img": [png(row) for row in range(60)],
            "fine": [row % 6 for row in range(60)],
            "coarse": ["xy"[row % 2] for row in range(60)],
        }
    )
    (tmp_path / "task").mkdir()
    pq.write_table(table, tmp_path / "task" / "train.parquet")
    return tmp_path / "task"


def test_the_refusal_names_a_key_that_the_config_has(tmp_path: Path, png: Png) -> None:
    folder = two_labels(tmp_path, png)
    told = r"set task\.label_column to one of fine, coarse"
    with pytest.raises(ValueError, match=told), keys_of("task"):
        inspect(TaskSource(source=str(folder)))
    assert len(summary(folder, label_column="fine").class_names) == 6
    assert summary(folder, label_column="coarse").class_names == ("x", "y")


def test_all_bad_labels_are_told_at_once(write_parquet: WriteParquet) -> None:
    message = refused(write_parquet([*TEN_EACH, 2, 0, 7]))
    assert "label 2 at" in message
    assert "row 22, is none of the 2 classes" in message


@pytest.mark.parametrize(
    ("train", "test"),
    [
        ("data/train-00000-of-00002.parquet", "data/test-00000-of-00001.parquet"),
        ("default/train/0000.parquet", "default/test/0000.parquet"),
        ("data/train/shard-0.parquet", "data/test/shard-0.parquet"),
        ("train/part-0.parquet", "TEST/part-0.PARQUET"),
        ("my_task-train.parquet", "my_task-test.parquet"),
        ("split=train/0.pq", "split=test/0.pq"),
        ("only/partial-train/0000.parquet", "only/partial-test/0000.parquet"),
    ],
)
def test_shards_lie_where_libraries_put_them(
    write_parquet: WriteParquet, train: str, test: str
) -> None:
    write_parquet(TEN_EACH, name=train)
    found = summary(write_parquet(TEN_EACH, name=test))
    assert found.official == ("train", "test")
    assert found.passed_over == ()


def test_of_several_configurations_one_is_chosen(write_parquet: WriteParquet) -> None:
    for name in ("fine", "coarse"):
        for part in ("train", "test"):
            folder = write_parquet(TEN_EACH, name=f"{name}/{part}-0.parquet")
    assert "subset=None is none of the configurations of" in (message := refused(folder))
    assert "they are coarse, fine" in message
    assert "subset='fin' is none" in refused(folder, subset="fin")
    found = summary(folder, subset="fine")
    assert found.images["test"] == 20
    (passed,) = found.passed_over
    assert passed.rule == "Parquet files of configurations that task.subset does not choose"
    assert [Path(place).parts[-2] for place in passed.places] == ["coarse", "coarse"]


def test_the_default_configuration_needs_no_choice(write_parquet: WriteParquet) -> None:
    write_parquet(TEN_EACH, name="default/train.parquet")
    folder = write_parquet([*TEN_EACH, 0], name="other/train.parquet")
    assert sum(summary(folder).images.values()) == 20
