import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.trainables.images.writers import Png, WriteFolders, WriteParquet
from trainables.errors import InputError
from trainables.images.tasks import TaskSource, TaskSummary, inspect

TEN_EACH = [0, 1] * 10


def summary(folder: Path | str, **options: Any) -> TaskSummary:
    return inspect(TaskSource(source=str(folder), **options))


def refused(folder: Path | str, **options: Any) -> str:
    """The message that the task is refused with."""
    with pytest.raises(InputError) as caught:
        summary(folder, **options)
    message = str(caught.value)
    assert message.endswith(".")
    assert "\n" not in message
    return message


class TestTaskSource:
    def test_it_survives_json(self) -> None:
        source = TaskSource(source="digits", classes=("1", "0"), max_train_images=20, split_seed=3)
        assert TaskSource.from_dict(json.loads(json.dumps(source.to_dict()))) == source

    def test_unknown_names_are_refused(self) -> None:
        with pytest.raises(InputError, match=r"no field 'labels'; its fields are source"):
            TaskSource.from_dict({"source": "digits", "labels": 3})

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"source": " "}, "source=' ' must say"),
            ({"classes": ("a",)}, "classes=.* at least two"),
            ({"classes": ("a", "a")}, "classes=.* each once"),
            ({"max_train_images": 1}, "max_train_images=1 must be at least 2"),
            ({"split_seed": -1}, "split_seed=-1 must lie"),
        ],
    )
    def test_values_are_checked(self, options: dict[str, Any], message: str) -> None:
        with pytest.raises(InputError, match=message):
            TaskSource(**{"source": "digits", **options})


class TestDigits:
    def test_one_pool_is_cut(self) -> None:
        found = summary("digits")
        assert found.class_names == tuple("0123456789")
        assert found.official == ("train",)
        assert sum(found.images.values()) == 1797
        assert found.images["test"] == pytest.approx(0.2 * 1797, abs=1)
        assert found.typical_side == 8

    def test_classes_are_kept_in_the_order_given(self) -> None:
        found = summary("digits", classes=("7", "1"), max_train_images=50)
        assert found.class_names == ("7", "1")
        assert found.images["train"] == 50

    def test_an_unknown_class_is_refused_with_the_known(self) -> None:
        assert "'ten', but the task's classes are 0, 1, 2" in refused(
            "digits", classes=("1", "ten")
        )


class TestParquet:
    def test_official_parts_and_class_names(self, write_parquet: WriteParquet) -> None:
        for part in ("train", "validation", "test"):
            folder = write_parquet(TEN_EACH, name=f"{part}.parquet")
        found = summary(folder)
        assert found.class_names == ("cat", "dog")
        assert found.official == ("train", "validation", "test")
        assert found.class_counts["train"] == {"cat": 10, "dog": 10}
        assert summary(f"file://{folder}") == found

    @pytest.mark.parametrize("place", ["", "data/"])
    def test_shards_join_in_order(self, write_parquet: WriteParquet, place: str) -> None:
        for number in range(2):
            write_parquet([number] * 10, name=f"{place}train-0000{number}-of-00002.parquet")
        folder = write_parquet(TEN_EACH, name=f"{place}test-00000-of-00001.parquet")
        assert summary(folder).images == {"train": 14, "validation": 3, "devtest": 3, "test": 20}

    def test_folders_may_name_the_part(self, write_parquet: WriteParquet) -> None:
        write_parquet(TEN_EACH, name="train/0000.parquet")
        folder = write_parquet(TEN_EACH, name="test/0000.parquet")
        assert summary(folder).official == ("train", "test")

    def test_unrecognised_files_are_reported(self, write_parquet: WriteParquet) -> None:
        write_parquet(TEN_EACH)
        folder = write_parquet(TEN_EACH, name="extra.parquet")
        assert [Path(name).name for name in summary(folder).unused] == ["extra.parquet"]

    @pytest.mark.parametrize("kind", [pa.string(), pa.dictionary(pa.int8(), pa.string())])
    def test_text_labels_are_sorted_names(
        self, write_parquet: WriteParquet, kind: pa.DataType
    ) -> None:
        folder = write_parquet(["b", "a"] * 10, names=None, label_type=kind)
        assert summary(folder).class_names == ("a", "b")

    def test_unnamed_numbers_are_sorted_as_numbers(self, write_parquet: WriteParquet) -> None:
        assert summary(write_parquet([10, 9] * 10, names=None)).class_names == ("9", "10")

    def test_columns_are_found_by_their_features(self, write_parquet: WriteParquet) -> None:
        folder = write_parquet(TEN_EACH, columns=("photo", "species"))
        assert summary(folder).class_names == ("cat", "dog")

    def test_columns_may_be_named(self, write_parquet: WriteParquet) -> None:
        folder = write_parquet(TEN_EACH, columns=("photo", "species"), names=None)
        table = pq.read_table(folder / "train.parquet")
        pq.write_table(table.append_column("n", pa.array([1] * 20)), folder / "train.parquet")
        assert "columns that may be the label" in refused(folder)
        assert summary(folder, label_column="species").class_names == ("0", "1")
        assert "image_column='foto' is not a column of" in refused(folder, image_column="foto")
        assert "images must be struct<bytes" in refused(folder, image_column="species")

    def test_no_recognised_file(self, write_parquet: WriteParquet) -> None:
        folder = write_parquet(TEN_EACH, name="pictures.parquet")
        assert "found pictures.parquet); names must begin with train" in refused(folder)

    def test_no_train(self, write_parquet: WriteParquet) -> None:
        assert "parts found are test" in refused(write_parquet(TEN_EACH, name="test.parquet"))

    def test_a_damaged_file(self, write_parquet: WriteParquet) -> None:
        folder = write_parquet(TEN_EACH)
        (folder / "train.parquet").write_bytes(b"PAR1 and then nothing")
        assert "train.parquet cannot be read as Parquet" in refused(folder)

    @pytest.mark.parametrize("bad", [2, -1])
    def test_a_label_out_of_range(self, write_parquet: WriteParquet, bad: int) -> None:
        message = refused(write_parquet([*TEN_EACH, bad]))
        assert f"label {bad} at" in message
        assert "train.parquet, row 20, is none of the 2 classes" in message

    def test_a_null_label(self, write_parquet: WriteParquet) -> None:
        assert "train.parquet, row 3, is null" in refused(write_parquet([0, 1, 0, None, *TEN_EACH]))

    def test_several_labels_an_image(self, write_parquet: WriteParquet) -> None:
        folder = write_parquet([[0], [0, 1]] * 10, names=None)
        assert "means several labels an image" in refused(folder)

    def test_labels_of_no_use(self, write_parquet: WriteParquet) -> None:
        folder = write_parquet([0.5, 1.5] * 10, names=None)
        assert "no columns that may be the label" in refused(folder)
        assert "must be whole numbers or text" in refused(folder, label_column="label")

    def test_class_names_that_differ(self, write_parquet: WriteParquet) -> None:
        write_parquet(TEN_EACH)
        folder = write_parquet(TEN_EACH, name="test.parquet", names=("cat", "cow"))
        assert "(cow, dog), but a task's tables must agree" in refused(folder)

    def test_text_labels_that_train_lacks(self, write_parquet: WriteParquet) -> None:
        write_parquet(["a", "b"] * 10, names=None)
        folder = write_parquet(["a", "c"] * 10, name="test.parquet", names=None)
        assert "label 'c' at" in refused(folder)

    def test_label_types_that_differ(self, write_parquet: WriteParquet) -> None:
        write_parquet(["1", "2"] * 10, names=None)
        folder = write_parquet([1, 2] * 10, name="test.parquet", names=None)
        assert "labels of int64 against string" in refused(folder)

    def test_a_class_with_one_image(self, write_parquet: WriteParquet) -> None:
        assert "Class 'dog' has 1 image in train" in refused(write_parquet([0] * 9 + [1]))

    def test_metadata_that_is_no_json(self, write_parquet: WriteParquet) -> None:
        folder = write_parquet(TEN_EACH, names=None)
        table = pq.read_table(folder / "train.parquet")
        table = table.replace_schema_metadata({"huggingface": "{"})
        pq.write_table(table, folder / "train.parquet")
        assert "metadata 'huggingface' of" in refused(folder)

    def test_the_first_images_must_open(self, write_parquet: WriteParquet) -> None:
        images: list[dict[str, bytes | str | None]] = [{"bytes": b"nothing", "path": None}] * 20
        assert "train.parquet, row 0 cannot be decoded" in refused(
            write_parquet(TEN_EACH, images=images)
        )


class TestClassFolders:
    def test_one_pool(self, write_folders: WriteFolders) -> None:
        folder = write_folders({"b": 10, "a": 10, ".hidden": 1})
        (folder / "a" / "notes.txt").write_text("no image")
        found = summary(folder)
        assert found.class_names == ("a", "b")
        assert sum(found.images.values()) == 20

    def test_parts(self, write_folders: WriteFolders) -> None:
        write_folders({"a": 10, "b": 10}, under="train")
        write_folders({"a": 3, "b": 2}, under="val")
        folder = write_folders({"a": 1, "b": 1}, under="extra")
        found = summary(folder)
        assert found.official == ("train", "validation")
        assert found.images == {"train": 16, "validation": 5, "test": 4}
        assert [Path(name).name for name in found.unused] == ["extra"]

    def test_a_class_may_be_called_train(self, write_folders: WriteFolders) -> None:
        assert summary(write_folders({"car": 5, "train": 5})).class_names == ("car", "train")

    def test_deeper_images_count(self, write_folders: WriteFolders, png: Png) -> None:
        folder = write_folders({"a": 5, "b": 2})
        (folder / "b" / "more").mkdir()
        for number in range(3):
            (folder / "b" / "more" / f"{number}.PNG").write_bytes(png(number))
        assert sum(summary(folder).class_counts[s]["b"] for s in summary(folder).images) == 5

    def test_an_empty_class(self, write_folders: WriteFolders) -> None:
        assert "b holds no image" in refused(write_folders({"a": 5, "b": 0}))

    def test_classes_that_differ(self, write_folders: WriteFolders) -> None:
        write_folders({"a": 5, "b": 5}, under="train")
        folder = write_folders({"a": 5, "c": 5}, under="test")
        assert "train and test" in (message := refused(folder))
        assert "differ in class 'b'" in message

    def test_two_folders_for_one_part(self, write_folders: WriteFolders) -> None:
        write_folders({"a": 5, "b": 5}, under="train")
        write_folders({"a": 5, "b": 5}, under="val")
        folder = write_folders({"a": 5, "b": 5}, under="valid")
        assert "two folders for validation" in refused(folder)

    def test_one_class(self, write_folders: WriteFolders) -> None:
        assert "only class is 'a'" in refused(write_folders({"a": 5}))

    def test_a_corrupt_file(self, write_folders: WriteFolders) -> None:
        folder = write_folders({"a": 5, "b": 5})
        for path in folder.glob("a/*.png"):
            path.write_bytes(b"nothing")
        assert ".png cannot be decoded" in refused(folder)


class TestWhereNothingIs:
    @pytest.mark.parametrize("source", ["/no/such/folder", "./nothing", "a/b/c"])
    def test_a_missing_path(self, source: str) -> None:
        message = refused(source)
        assert f"source='{source}' does not exist; give 'digits', a folder of Parquet" in message

    def test_an_empty_folder(self, tmp_path: Path) -> None:
        assert f"The folder {tmp_path} is empty" in refused(tmp_path)

    def test_a_folder_of_something_else(self, tmp_path: Path) -> None:
        (tmp_path / "notes.txt").write_text("no image")
        assert "neither Parquet files nor class folders" in refused(tmp_path)

    def test_a_file(self, write_parquet: WriteParquet) -> None:
        folder = write_parquet(TEN_EACH)
        assert "is a file, but must be a folder" in refused(folder / "train.parquet")

    @pytest.mark.parametrize("uri", ["file:///no/such/folder", "carrier-pigeon://somewhere"])
    def test_a_uri_that_leads_nowhere(self, uri: str) -> None:
        assert f"source='{uri}' cannot be listed" in refused(uri)

    def test_a_hub_that_is_out_of_reach(self, monkeypatch: pytest.MonkeyPatch) -> None:
        import huggingface_hub.constants

        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
        message = refused("nobody/no-such-dataset")
        assert "could not be reached" in message
        assert "give a local folder" in message
        assert "connect this machine to the network" in message


class TestHub:
    def test_splits_are_read_as_parquet_is(self, png: Png) -> None:
        import datasets

        from trainables.images.hub import pick_splits
        from trainables.images.schema import ColumnNames

        features = datasets.Features(
            {"img": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog"])}
        )
        rows = {"img": [{"bytes": png(v), "path": None} for v in range(20)], "label": TEN_EACH}
        split = datasets.Dataset.from_dict(rows, features=features)
        origin = pick_splits(
            {"train": split, "training": split, "unsupervised": split}, ColumnNames()
        )
        (passed,) = origin.passed_over
        assert passed.places == ("training", "unsupervised")
        assert passed.count == 40
        catalog = origin.read()
        assert catalog.class_names == ("cat", "dog")
        part = catalog.parts["train"]
        assert part.labels.tolist() == TEN_EACH
        opened = [raw.open() for raw in part.images(np.array([3, 17]))]
        assert [image.getpixel((0, 0)) for image in opened] == [3, 17]

    def test_no_train_split(self) -> None:
        from trainables.images.hub import pick_splits
        from trainables.images.schema import ColumnNames

        with pytest.raises(InputError, match="splits are unsupervised"):
            pick_splits({"unsupervised": None}, ColumnNames())
