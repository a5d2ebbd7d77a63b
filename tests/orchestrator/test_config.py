"""Every bad config gets one sentence that names the key, the value and the rule."""

from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import yaml

from orchestrator.config import (
    PretrainConfig,
    SweepConfig,
    read_begun,
    read_config,
    to_yaml,
    validate,
)
from orchestrator.search.config import SearchConfig
from trainables.errors import InputError
from trainables.images.tasks import TaskSource

GOOD: dict[str, Any] = {
    "name": "flowers",
    "task": {"source": "digits"},
    "backbone": {"model": "resnet18"},
    "budget": {"trials": 10},
    "rungs": {"min_flops": 1e9, "max_flops": 1e10},
}


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(GOOD))
    return path


def read(path: Path, *overrides: str) -> SweepConfig:
    return read_config(SweepConfig, path, overrides)


def refusal(path: Path, *overrides: str) -> str:
    """The complaint that the user reads, which is one sentence on one line."""
    with pytest.raises(InputError) as caught:
        read(path, *overrides)
    sentence = str(caught.value)
    assert "\n" not in sentence
    assert sentence[-1] in ".?"
    return sentence


def test_a_small_config_is_enough(config: Path) -> None:
    read_back = read(config)
    assert read_back.budget.trials == 10
    assert read_back.resources.max_failures == 3
    assert read_back.rungs.levels() == pytest.approx((1e9, 2.154e9, 4.642e9, 1e10), rel=1e-3)


@pytest.mark.parametrize(
    ("override", "named"),
    [
        ("tsk.source=digits", ("the key tsk is not known", "did you mean task?")),
        ("budget.trails=5", ("the key budget.trails is not known", "did you mean trials?")),
        ("ray.xyz=5", ("the key ray.xyz is not known", "the keys there are address")),
        ("seed=-1", ("seed=-1", "greater than or equal to 0")),
        ("seed=x", ("seed='x'", "valid integer")),
        ("name=a b", ("name='a b'", "should match pattern")),
        ("name=[a]", ("name=['a']", "valid string")),
        ("task.resolution=4", ("task.resolution=4", "greater than or equal to 8")),
        ("task.resolution=32.5", ("task.resolution=32.5", "valid integer")),
        ("task.max_train_images=0", ("task.max_train_images=0", "must be at least 2 images")),
        ("task=digits", ("task='digits'", "should be a section")),
        ("task.label_colum=x", ("the key task.label_colum is not", "did you mean label_column?")),
        ("task.classes=[a]", ("task.classes=('a',) must name at least two classes",)),
        ("task.label_column=3", ("task.label_column=3", "valid string")),
        ("source_task={source: ' '}", ("source_task.source=' ' must say where",)),
        ("source_task={source: a, classes: [b]}", ("source_task.classes=('b',) must name",)),
        ("source_task={source: a, sorce: b}", ("source_task.sorce is not", "mean source?")),
        ("source_task={mirror: false}", ("source_task.source is missing",)),
        ("backbone.wieghts=hub", ("the key backbone.wieghts is not", "did you mean weights?")),
        ("backbone.std=[.inf, 1, 1]", ("backbone.std.0=inf", "finite")),
        ("space.ranges=[1]", ("space.ranges=[1]", "should be a section")),
        ("backbone.mean=[0.5]", ("backbone.mean", "")),
        ("backbone.std=[0.1, 0.1, 0]", ("backbone.std.2=0", "greater than 0")),
        ("budget.trials=null", ("budget needs at least one of trials, sweep_flops",)),
        ("budget.trials=0", ("budget.trials=0", "greater than 0")),
        ("budget.sweep_flops=-1e9", ("budget.sweep_flops=-1000000000.0", "greater than 0")),
        ("budget.sweep_flops=.inf", ("budget.sweep_flops=inf", "finite")),
        ("budget.wall_time=soon", ("budget.wall_time='soon'", "90s, 20m or 1h30m")),
        ("budget.wall_time=0s", ("budget.wall_time=0.0", "greater than 0")),
        ("rungs.max_flops=1e8", ("rungs has max_flops=1e+08 below min_flops=1e+09",)),
        ("rungs.max_flops=.nan", ("rungs.max_flops=nan", "finite")),
        ("search.reduction_factor=1", ("search.reduction_factor=1", "greater than 1")),
        ("search.confirm=0.6", ("search.confirm=0.6", "less than or equal to 0.5")),
        ("resources.gpus=-0.5", ("resources.gpus=-0.5", "at least 0, or auto")),
        ("resources.gpus=all", ("resources.gpus='all'", "a number of GPUs")),
        ("resources.cpus=many", ("resources.cpus='many'", "valid integer")),
    ],
)
def test_what_makes_no_sense_is_named(config: Path, override: str, named: tuple[str, ...]) -> None:
    sentence = refusal(config, override)
    assert sentence.startswith(f"{config}: ")
    for part in named:
        assert part in sentence


@pytest.mark.parametrize("key", ["name", "task", "backbone", "budget", "rungs"])
def test_what_is_missing_is_named(tmp_path: Path, key: str) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump({k: v for k, v in GOOD.items() if k != key}))
    assert f"{key} is missing" in refusal(path)


def test_what_is_missing_in_a_section_is_named(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(GOOD | {"rungs": {"min_flops": 1e9}}))
    assert "rungs.max_flops is missing" in refusal(path)


def test_a_key_that_is_no_word_is_named(config: Path) -> None:
    config.write_text(config.read_text() + "7: x\n")
    assert "the key 7 is" in refusal(config).replace("'", "")


@pytest.mark.parametrize(
    ("content", "named"),
    [
        ("name: [a\nseed: 0\n", "not valid YAML"),
        ("name: a\n\tseed: 0\n", "line 2, column 1"),
        ("", "holds no mapping"),
        ("- a\n- b\n", "holds no mapping"),
        ("just words", "holds no mapping"),
    ],
)
def test_a_file_that_is_no_config_is_named(config: Path, content: str, named: str) -> None:
    config.write_text(content)
    sentence = refusal(config)
    assert str(config) in sentence
    assert named in sentence


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    sentence = refusal(tmp_path / "nowhere.yaml")
    assert str(tmp_path / "nowhere.yaml") in sentence
    assert "No such file" in sentence


def test_a_folder_and_a_picture_are_no_configs(tmp_path: Path) -> None:
    assert "cannot be read" in refusal(tmp_path)
    (tmp_path / "image.png").write_bytes(b"\x89PNG\xff\xfe")
    assert "is no text" in refusal(tmp_path / "image.png")


@pytest.mark.parametrize(
    ("override", "named"),
    [
        ("budget.trials", "'budget.trials' is no override"),
        ("=5", "'=5' is no override"),
        ("budget..trials=5", "is no override"),
        (".trials=5", "is no override"),
        ("name.first=x", "reaches into name, which is 'flowers'"),
        ("budget.trials=[", "budget.trials=[ is not valid YAML"),
    ],
)
def test_an_override_that_is_none_is_named(config: Path, override: str, named: str) -> None:
    assert named in refusal(config, override)


def test_overrides_replace_and_add(config: Path) -> None:
    read_back = read(
        config, "budget.trials=50", "ray.address=auto", "space.ranges.criterion=[l1, l2]"
    )
    assert read_back.budget.trials == 50
    assert read_back.ray.address == "auto"
    assert read_back.space.ranges == {"criterion": ["l1", "l2"]}


def test_an_override_fills_an_empty_section(config: Path) -> None:
    config.write_text(config.read_text() + "search:\n")
    assert "search=None should be a section" in refusal(config)
    assert read(config, "search.generation=8").search.generation == 8


@pytest.mark.parametrize("written", ["1e9", "1.e9", "1.0e9", "1.0e+9", "1E9", "1000000000"])
def test_a_power_of_ten_is_a_number_however_it_is_written(config: Path, written: str) -> None:
    assert read(config, f"budget.sweep_flops={written}").budget.sweep_flops == 1e9
    ranges = read(config, f"space.ranges.target={{low: {written}}}").space.ranges
    assert ranges == {"target": {"low": 1e9}}


@pytest.mark.parametrize(
    ("written", "seconds"),
    [
        ("90", 90),
        ("2.5", 2.5),
        ("90s", 90),
        ("20m", 1200),
        ("1.5h", 5400),
        ("1h30m", 5400),
        ("1h 30m", 5400),
        ("2d", 172800),
    ],
)
def test_durations(config: Path, written: str, seconds: float) -> None:
    assert read(config, f"budget.wall_time={written}").budget.wall_time == seconds


def test_what_is_written_reads_back_equal(config: Path, tmp_path: Path) -> None:
    first = read(
        config,
        "budget.sweep_flops=1e15",
        "budget.wall_time=1h30m",
        "task.classes=['yes', '1', 'two words']",
        "backbone.std=[0.2, 0.2, 0.2]",
        "backbone.args={output_stride: 16}",
        "space.ranges={learning_rate: {low: 1e-3}, criterion: [l1, l2], pruning_ratio: [0, 0.5]}",
        "search.reduction_factor=null",
        "storage.folder=~/sweeps/ü",
    )
    (tmp_path / "again.yaml").write_text(to_yaml(first))
    assert read(tmp_path / "again.yaml") == first


def test_a_config_from_before_a_key_was_there_reads_as_one_that_leaves_it_out(
    config: Path, tmp_path: Path
) -> None:
    values = yaml.safe_load(to_yaml(read(config)))
    for key in ("subset", "revision", "image_column", "label_column"):
        assert values["task"].pop(key) is None
    (tmp_path / "before.yaml").write_text(yaml.safe_dump(values))
    assert read(tmp_path / "before.yaml") == read(config)


def test_a_sweep_from_before_auto_reads_as_what_it_was(config: Path) -> None:
    old = yaml.safe_load(config.read_text())
    config.write_text(yaml.safe_dump(old | {"search": {"startup_trials": 4}}))
    assert read_begun(config).search.names == {"sampler": "tpe", "scheduler": "halving"}
    assert read_begun(config).search.startup_trials == 4
    config.write_text(yaml.safe_dump(old | {"search": {"scheduler": "race"}}))
    assert read_begun(config).search.names == {"sampler": "tpe", "scheduler": "race"}
    config.write_text(to_yaml(read(config).resolved()))
    assert read_begun(config) == read(config).resolved()


@pytest.mark.parametrize(
    ("search", "sampler", "scheduler"),
    [
        ({}, "model", "race"),
        ({"sampler": "gp"}, "gp", "race"),
        ({"scheduler": "race"}, "model", "race"),
        ({"scheduler": "halving"}, "tpe", "halving"),
        ({"scheduler": "none"}, "tpe", "none"),
        ({"reduction_factor": None}, "tpe", "none"),
        ({"reduction_factor": None, "sampler": "model", "scheduler": "race"}, "model", "none"),
    ],
)
def test_auto_stands_for_the_model_and_the_race(
    search: dict[str, Any], sampler: str, scheduler: str
) -> None:
    resolved = SearchConfig(**search).resolved()
    assert resolved.names == {"sampler": sampler, "scheduler": scheduler}
    assert resolved.resolved() == resolved


def test_a_sweep_goes_on_with_what_it_had_unless_told_otherwise() -> None:
    had = {"sampler": "tpe", "scheduler": "halving"}
    assert SearchConfig().going_on(had).names == had
    assert SearchConfig(scheduler="race").going_on(had).names == had | {"scheduler": "race"}


def test_a_task_is_told_apart_by_all_that_the_config_says_of_it(config: Path) -> None:
    keys: dict[str, Any] = {
        "subset": "plants",
        "revision": "0123abc",
        "image_column": "photo",
        "label_column": "fine_label",
        "classes": ["oak", "elm"],
        "max_train_images": 50,
        "max_validation_images": 20,
        "split_seed": 3,
    }
    assert {f.name for f in fields(TaskSource)} == {"source", *keys}
    task = read(config, *(f"task.{key}={value}" for key, value in keys.items())).task
    source = task.to_source()
    assert source == TaskSource(source="digits", **keys | {"classes": ("oak", "elm")})
    assert source.set_values() == {"source": "digits", **keys}
    assert read(config).task.to_source().set_values() == {"source": "digits"}


def test_a_path_that_exists_means_the_same_everywhere(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "net.safetensors").write_bytes(b"")
    monkeypatch.chdir(tmp_path)
    resolved = read(config, "task.source=images", "backbone.weights=./net.safetensors")
    assert resolved.task.source == str(tmp_path / "images")
    assert resolved.backbone.weights == str(tmp_path / "net.safetensors")
    assert read(config, "task.source=user/dataset").task.source == "user/dataset"


def test_a_file_in_the_working_folder_does_not_hide_a_name(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "digits").mkdir()
    (tmp_path / "hub").write_bytes(b"")
    monkeypatch.chdir(tmp_path)
    resolved = read(config, "backbone.weights=hub")
    assert (resolved.task.source, resolved.backbone.weights) == ("digits", "hub")


def test_the_folder_is_absolute(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert read(config).folder == tmp_path / "runs" / "flowers"
    assert read(config, "storage.folder=here").folder == tmp_path / "here"


def test_a_config_for_pretraining_is_checked_alike() -> None:
    values = {"task": GOOD["task"], "backbone": GOOD["backbone"], "out": "x.safetensors"}
    assert validate(PretrainConfig, values, what="w").epochs == 20
    with pytest.raises(InputError, match=r"^w: the key epoch is not known; did you mean epochs\?"):
        validate(PretrainConfig, values | {"epoch": 3}, what="w")
    with pytest.raises(InputError, match="label_smoothing=1.0 should be less than 1"):
        validate(PretrainConfig, values | {"label_smoothing": 1.0}, what="w")
