"""Trials that go on from the trunk of a finished one, and when they must not."""

import json
import logging
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from search_spaces.recipe import Optimizer, Recipe, Schedule
from tests.trainables.raised_trials import (
    assert_same_checkpoint,
    assert_went_on,
    state_of,
    unpaid,
)
from tests.trainables.recipes import advance, make_recipe, make_trial, run, rung_uri
from trainables.backbones.source import BackboneSource
from trainables.checkpoints import STATE
from trainables.export import export_model
from trainables.finetune import Finetuning
from trainables.images.store import ImageStore, open_store
from trainables.images.tasks import TaskSource
from trainables.measurement import Measurement

STEP_FLOPS = 58374144
"""A step of `make_recipe`'s batch on the small backbone."""
LEVELS = tuple(STEP_FLOPS * (steps + 0.5) for steps in (2, 4, 9, 10, 15, 20))
"""Rungs at as many steps: the trunk of a trial of 10 steps has 8, that of one of 20 has 16."""
STAYING = make_recipe(schedule=Schedule.WARMUP_STABLE_DECAY)
FREE: dict[str, Any] = {
    "optimizer": Optimizer.SCHEDULE_FREE_ADAMW,
    "schedule": Schedule.CONSTANT,
}
DISTURBED: dict[str, Any] = {
    "batch_size": 8,
    "augmentation": 0.7,
    "label_smoothing": 0.1,
    "clip_norm": 0.5,
    "mixup": 0.2,
    "cutmix": 1.0,
    "class_weighting": 0.5,
    "layer_decay": 0.8,
}
DROPS = BackboneSource(model="test_resnet", args={"drop_rate": 0.3, "drop_path_rate": 0.2})


def trial(store: ImageStore, recipe: Recipe, *, rung: int, **options: Any) -> Finetuning:
    """Returns the recipe's trial towards the rung."""
    levels = options.pop("levels", LEVELS)
    aimed = replace(recipe, target_flops=levels[rung])
    return make_trial(store, aimed, levels=levels, **options)


def folder_of(trial_folder: Path, rung: int) -> Path:
    return trial_folder / f"rung-{rung:03d}"


@pytest.fixture(scope="module")
def lower(digits: ImageStore, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished trial of ten steps, its two last rungs past its trunk; it must stay as it is."""
    folder = tmp_path_factory.mktemp("lower")
    finished = trial(digits, STAYING, rung=3)
    assert [stop.steps for stop in finished.stops] == [2, 4, 9, 10]
    curve = run(finished, folder)
    assert [m.trunk_flops for m in curve] == [0, 0, 0, 8 * STEP_FLOPS]
    return folder


@pytest.fixture(scope="module")
def alone(digits: ImageStore, tmp_path_factory: pytest.TempPathFactory) -> list[Measurement]:
    """The curve of the recipe that aims at the highest rung."""
    return run(trial(digits, STAYING, rung=5))


CHOICES: list[dict[str, Any]] = [
    {"optimizer": optimizer, "schedule": schedule}
    for optimizer in (Optimizer.SGD, Optimizer.ADAMW)
    for schedule in (Schedule.WARMUP_STABLE_DECAY, Schedule.CONSTANT)
]


@pytest.mark.parametrize("choice", [*CHOICES, FREE], ids=lambda choice: "-".join(choice.values()))
def test_a_rate_that_stays_is_gone_on_with(
    digits: ImageStore, tmp_path: Path, choice: dict[str, Any]
) -> None:
    """The exported model is the same, whatever draws at random."""
    recipe = make_recipe(**DISTURBED, **choice)
    levels = tuple(level + 3e8 for level in LEVELS)  # what settles a schedule-free average
    options: dict[str, Any] = {"source": DROPS, "levels": levels}
    *_, ended = run(trial(digits, recipe, rung=3, **options), tmp_path / "lower")
    alone = run(trial(digits, recipe, rung=5, **options), tmp_path / "alone")
    lower = rung_uri(tmp_path / "lower", ended.rung)
    raised = trial(digits, recipe, rung=5, continue_from=lower, **options)
    assert raised.unbilled_flops == 0
    curve = run(raised, tmp_path / "raised")
    assert_went_on(curve, lower=folder_of(tmp_path / "lower", 3), alone=alone, batch_size=8)
    assert_same_checkpoint(folder_of(tmp_path / "raised", 5), folder_of(tmp_path / "alone", 5))
    for name in ("raised", "alone"):
        export_model(
            rung_uri(tmp_path / name, 5),
            tmp_path / f"{name} export",
            backbone=DROPS,
            class_names=digits.class_names,
            card="",
        )
    weights = [tmp_path / f"{name} export" / "model.safetensors" for name in ("raised", "alone")]
    assert weights[0].read_bytes() == weights[1].read_bytes()


@pytest.mark.parametrize("schedule", [Schedule.COSINE, Schedule.LINEAR])
def test_a_rate_that_falls_at_once_starts_from_scratch(
    digits: ImageStore, tmp_path: Path, caplog: pytest.LogCaptureFixture, schedule: Schedule
) -> None:
    recipe = make_recipe(schedule=schedule)
    *_, ended = run(trial(digits, recipe, rung=1), tmp_path)
    assert ended.trunk_flops == 0
    raised = trial(digits, recipe, rung=3, continue_from=rung_uri(tmp_path, ended.rung))
    assert_starts_from_scratch(raised, trial(digits, recipe, rung=3), caplog)


def assert_starts_from_scratch(
    raised: Finetuning, alone: Finetuning, log: pytest.LogCaptureFixture, why: str = ""
) -> None:
    """Fails unless the trial measures and pays what it does alone, and one line says why."""
    first, other = advance(raised), advance(alone)
    assert first is not None
    assert other is not None
    assert replace(first, train_seconds=0.0) == replace(other, train_seconds=0.0)
    (record,) = log.records
    assert record.levelno == logging.WARNING
    assert record.getMessage().startswith("The trial starts from scratch and not from ")
    assert why in record.getMessage()


def test_its_time_and_its_looks_count_as_if_alone(
    digits: ImageStore, lower: Path, alone: list[Measurement]
) -> None:
    raised = trial(digits, STAYING, rung=5, continue_from=rung_uri(lower, 3))
    first = advance(raised)
    assert first is not None
    assert first.eval_flops == alone[2].eval_flops == 3 * alone[0].eval_flops
    assert first.train_seconds > state_of(folder_of(lower, 3))["trunk"]["train_seconds"] > 0


def test_a_trial_raised_again_and_again_is_its_recipe_alone(
    digits: ImageStore, tmp_path: Path
) -> None:
    """Each goes on from the one before, and together they take what they share once."""
    run(trial(digits, STAYING, rung=5), tmp_path / "alone")
    before, executed, shared = None, 0.0, 0.0
    for rung in (1, 3, 4, 5):
        folder = tmp_path / f"to rung {rung}"
        raised = trial(digits, STAYING, rung=rung, continue_from=before)
        curve = run(raised, folder)
        assert sum(m.executed_flops for m in curve) == curve[-1].train_flops - shared
        before, shared = rung_uri(folder, rung), curve[-1].trunk_flops
        executed += sum(m.executed_flops for m in curve)
    assert executed / STEP_FLOPS == 4 + (10 - 3) + (15 - 8) + (20 - 12)
    assert_same_checkpoint(folder_of(folder, 5), folder_of(tmp_path / "alone", 5))


@pytest.mark.parametrize("rung", [0, 1, 2])
def test_a_trial_killed_at_any_rung_still_leaves_its_trunk(
    digits: ImageStore, lower: Path, tmp_path: Path, rung: int
) -> None:
    run(trial(digits, STAYING, rung=3, resume_from=rung_uri(lower, rung)), tmp_path)
    assert_same_checkpoint(folder_of(tmp_path, 3), folder_of(lower, 3))


def test_a_raised_trial_with_a_checkpoint_of_its_own_resumes_it(
    digits: ImageStore, lower: Path, tmp_path: Path, alone: list[Measurement]
) -> None:
    raised = trial(digits, STAYING, rung=5, continue_from=rung_uri(lower, 3))
    (first, *_) = run(raised, tmp_path)
    again = trial(
        digits,
        STAYING,
        rung=5,
        resume_from=rung_uri(tmp_path, first.rung),
        continue_from=rung_uri(lower, 3),
    )
    assert again.measurement == first
    assert [unpaid(m) for m in run(again)] == [unpaid(m) for m in alone[3:]]


@pytest.mark.parametrize("rung", [0, 1])
def test_a_rung_on_the_trunk_is_as_good_to_go_on_from(
    digits: ImageStore, lower: Path, alone: list[Measurement], rung: int
) -> None:
    raised = trial(digits, STAYING, rung=5, continue_from=rung_uri(lower, rung))
    curve = run(raised)
    assert [unpaid(m) for m in curve] == [unpaid(m) for m in alone[rung + 1 :]]
    assert curve[0].executed_flops == alone[rung + 1].executed_flops


def change(folder: Path, changes: Callable[[dict[str, Any]], None]) -> None:
    """Rewrites the checkpoint's JSON."""
    state = state_of(folder)
    changes(state)
    (folder / STATE).write_text(json.dumps(state))


def lose_a_group(folder: Path) -> None:
    (folder / "trunk_optimizer.safetensors").unlink()


def cut_a_group(folder: Path) -> None:
    path = folder / "trunk_model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def reshape_a_weight(folder: Path) -> None:
    path = folder / "trunk_model.safetensors"
    tensors = safetensors.torch.load_file(path)
    safetensors.torch.save_file(tensors | {"fc.weight": torch.zeros(2, 2)}, path)


def forget_an_optimizer(folder: Path) -> None:
    change(folder, lambda state: state["trunk"]["learner"].update(groups=[]))


def empty_the_state(folder: Path) -> None:
    (folder / STATE).write_text("")


def delete_it(folder: Path) -> None:
    (folder / STATE).unlink()


def make_it_old(folder: Path) -> None:
    change(folder, lambda state: state.pop("trunk"))


def make_steps_dearer(folder: Path) -> None:
    change(folder, lambda state: state["trunk"]["prices"].update(step_flops=STEP_FLOPS + 1))


@pytest.mark.parametrize(
    ("damage", "why"),
    [
        (lose_a_group, "cannot be read: "),
        (cut_a_group, "cannot be read: "),
        (empty_the_state, "cannot be read: "),
        (delete_it, "cannot be read: "),
        (reshape_a_weight, "is damaged: "),
        (forget_an_optimizer, "is damaged: "),
        (make_it_old, "no step of it is the same in a run towards more compute"),
        (make_steps_dearer, "its steps are others, because they cost something else"),
    ],
)
def test_a_trunk_that_cannot_be_used_is_done_without(
    digits: ImageStore,
    lower: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    damage: Callable[[Path], None],
    why: str,
) -> None:
    copy = folder_of(tmp_path, 3)
    copy.mkdir()
    for path in folder_of(lower, 3).iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    damage(copy)
    raised = trial(digits, STAYING, rung=4, continue_from=rung_uri(tmp_path, 3))
    assert_starts_from_scratch(raised, trial(digits, STAYING, rung=4), caplog, why)


@pytest.mark.parametrize(
    ("changes", "options", "why"),
    [
        ({}, {"seed": 8}, "it is of another recipe or seed"),
        ({"weight_decay": 0.1}, {}, "it is of another recipe or seed"),
        ({}, {"rung": 1}, "only 3 of its 8 steps are this trial's too"),
    ],
    ids=["seed", "recipe", "less compute"],
)
def test_a_run_that_would_be_another_starts_from_scratch(
    digits: ImageStore,
    lower: Path,
    caplog: pytest.LogCaptureFixture,
    changes: dict[str, Any],
    options: dict[str, Any],
    why: str,
) -> None:
    def make(continue_from: str | None = None) -> Finetuning:
        recipe = replace(STAYING, **changes)
        return trial(digits, recipe, **{"rung": 4} | options, continue_from=continue_from)

    assert_starts_from_scratch(make(rung_uri(lower, 3)), make(), caplog, why)


def test_a_trial_of_the_same_target_at_its_end_has_no_step_to_go_on_with(
    digits: ImageStore, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    recipe = make_recipe(schedule=Schedule.CONSTANT)
    run(trial(digits, recipe, rung=1), tmp_path)
    same = trial(digits, recipe, rung=1, continue_from=rung_uri(tmp_path, 1))
    assert_starts_from_scratch(same, trial(digits, recipe, rung=1), caplog, "no step follows its 4")


def test_an_older_checkpoint_is_resumed_and_leaves_no_trunk(
    digits: ImageStore, lower: Path, tmp_path: Path
) -> None:
    """Its first steps may have been others than those of today."""
    old = folder_of(tmp_path, 1)
    old.mkdir()
    for path in folder_of(lower, 1).iterdir():
        (old / path.name).write_bytes(path.read_bytes())
    make_it_old(old)
    *_, ended = run(trial(digits, STAYING, rung=3, resume_from=rung_uri(tmp_path, 1)))
    assert ended.trunk_flops == 0


def test_a_constant_rate_writes_nothing_twice(digits: ImageStore, tmp_path: Path) -> None:
    run(trial(digits, make_recipe(schedule=Schedule.CONSTANT), rung=1), tmp_path)
    assert not list(folder_of(tmp_path, 1).glob("trunk_*"))


def test_a_trunk_is_written_without_what_is_frozen(digits: ImageStore, tmp_path: Path) -> None:
    recipe = replace(STAYING, trainable_depth=0.0, augmentation=0.5)
    run(trial(digits, recipe, rung=3), tmp_path)
    for model in ("model", "average"):
        written = safetensors.torch.load_file(folder_of(tmp_path, 3) / f"trunk_{model}.safetensors")
        assert set(written) == {"fc.weight", "fc.bias"}


TEN = TaskSource(source="digits", max_train_images=96)
HEAD_STEP_FLOPS = 122880
"""A step of the head of ten classes with 32 images."""
HEAD = make_recipe(schedule=Schedule.WARMUP_STABLE_DECAY, trainable_depth=0.0, batch_size=32)


@pytest.fixture(scope="module")
def ten_digits(image_cache: Path) -> ImageStore:
    """96 training images of ten digits, whose head is dear enough to train for less than 100 passes
    once the features of all images are paid for."""
    return open_store(TEN, resolution=16, cache_dir=image_cache)


def test_a_head_goes_on_with_the_features_of_all_images(
    ten_digits: ImageStore, tmp_path: Path
) -> None:
    levels = (2.62e8, 2.66e8, 2.7e8)
    low = trial(ten_digits, HEAD, rung=1, levels=levels)
    assert low.batches.setup_images == 96
    run(low, tmp_path / "lower")
    alone = run(trial(ten_digits, HEAD, rung=2, levels=levels), tmp_path / "alone")
    raised = trial(
        ten_digits, HEAD, rung=2, levels=levels, continue_from=rung_uri(tmp_path / "lower", 1)
    )
    curve = run(raised, tmp_path / "raised")
    assert_went_on(curve, lower=folder_of(tmp_path / "lower", 1), alone=alone, batch_size=32)
    assert_same_checkpoint(folder_of(tmp_path / "raised", 2), folder_of(tmp_path / "alone", 2))


def test_features_that_are_gone_are_paid_for_again(ten_digits: ImageStore, tmp_path: Path) -> None:
    levels = (2.62e8, 2.66e8, 2.7e8)
    *_, ended = run(trial(ten_digits, HEAD, rung=1, levels=levels), tmp_path)
    shutil.rmtree(ten_digits.folder.parent / "features")
    first = advance(
        trial(ten_digits, HEAD, rung=2, levels=levels, continue_from=rung_uri(tmp_path, 1))
    )
    assert first is not None
    extracted = 96 * (first.inference_flops - HEAD_STEP_FLOPS / 32 / 2)
    assert first.executed_flops == first.train_flops - ended.trunk_flops + extracted


@pytest.mark.parametrize(
    ("levels", "why_none"),
    [((1.7e8, 1.76e8, 2.7e8), "fewer images"), ((2.62e8, 2.8e8, 3e8), "no more steps")],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_head_that_more_compute_trains_otherwise_or_no_longer_keeps_no_trunk(
    ten_digits: ImageStore, tmp_path: Path, levels: tuple[float, ...], why_none: str
) -> None:
    low = trial(ten_digits, HEAD, rung=1, levels=levels)
    assert low.batches.depends_on_target == (why_none == "fewer images")
    assert (low.stops[-1].steps == low.batches.max_steps) == (why_none == "no more steps")
    *_, ended = run(low, tmp_path)
    assert ended.trunk_flops == 0
