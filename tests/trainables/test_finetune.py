"""The training loop: exact resumption, exact cost, what stays frozen, and how it ends."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from search_spaces.recipe import Optimizer, Schedule
from tests.trainables.recipes import LEVELS, SMALL, make_recipe, make_trial, run, rung_uri
from trainables.backbones.source import BackboneSource
from trainables.checkpoints import load_checkpoint
from trainables.errors import InfeasibleError
from trainables.finetune import Finetuning
from trainables.images.store import ImageStore, Split
from trainables.measurement import Measurement, Outcome
from trainables.mechanisms.batch_norm_repair import CALIBRATION_IMAGES

EVERYTHING_RANDOM = {
    "pruning_ratio": 0.5,
    "trainable_depth": 0.6,
    "augmentation": 0.7,
    "label_smoothing": 0.1,
    "layer_decay": 0.8,
    "batch_size": 14,
}
DROPS = BackboneSource(model="test_resnet", args={"drop_rate": 0.3, "drop_path_rate": 0.2})
SQUEEZED = BackboneSource(model="test_efficientnet", args={"drop_rate": 0.2, "drop_path_rate": 0.1})
USERS_OWN = BackboneSource(model="tests.trainables.backbones.cifar_resnet:cifar_resnet")
SPARE = BackboneSource(model="tests.trainables.backbones.cifar_resnet:with_a_spare_layer")


def timeless(measurement: Measurement) -> Measurement:
    return replace(measurement, train_seconds=0.0)


def weights(folder: Path, rung: int) -> dict[str, bytes]:
    """Every tensor file of a checkpoint, bit by bit."""
    saved = (folder / f"rung-{rung:03d}").glob("*.safetensors")
    return {path.name: path.read_bytes() for path in saved}


@pytest.mark.parametrize(
    ("source", "changes"),
    [
        (DROPS, EVERYTHING_RANDOM),
        (DROPS, EVERYTHING_RANDOM | {"width_rule": "all", "batch_size": 100}),
        (SQUEEZED, EVERYTHING_RANDOM | {"trainable_depth": 1.0}),
        (USERS_OWN, EVERYTHING_RANDOM | {"resolution": 12}),
        (SMALL, {"trainable_depth": 0.0, "augmentation": 0.5}),
        (SPARE, {"augmentation": 0.5, "resolution": 8}),
    ],
    ids=["dropout", "big batch", "mobile", "user's own", "head", "spare layer"],
)
def test_a_trial_resumed_from_any_rung_ends_as_if_it_had_never_stopped(
    digits: ImageStore, tmp_path: Path, source: BackboneSource, changes: dict[str, Any]
) -> None:
    levels = tuple(level * (4 if changes.get("batch_size", 0) == 100 else 1) for level in LEVELS)
    recipe = make_recipe(**changes | {"target_flops": levels[-1]})
    whole = run(make_trial(digits, recipe, source=source, levels=levels), tmp_path / "whole")
    assert len(whole) >= 3

    for index, measured in enumerate(whole):
        again = make_trial(
            digits,
            recipe,
            source=source,
            levels=levels,
            resume_from=rung_uri(tmp_path / "whole", measured.rung),
        )
        assert again.measurement is not None
        assert timeless(again.measurement) == timeless(measured)
        assert again.outcome is (Outcome.COMPLETE if measured == whole[-1] else Outcome.RUNNING), (
            "it stands where it was"
        )
        rest = run(again, tmp_path / f"from {index}")
        assert [timeless(m) for m in rest] == [timeless(m) for m in whole[index + 1 :]]
        if rest:
            last = whole[-1].rung
            ended = weights(tmp_path / f"from {index}", last)
            assert ended == weights(tmp_path / "whole", last)
            assert set(ended) == {
                "model.safetensors",
                "measured.safetensors",
                "transfer.safetensors",
                "optimizer.safetensors",
            }


FREE = {"optimizer": Optimizer.SCHEDULE_FREE_ADAMW, "schedule": Schedule.CONSTANT}
CHOICES = [
    {"optimizer": optimizer, "schedule": schedule}
    for optimizer in (Optimizer.SGD, Optimizer.ADAMW)
    for schedule in Schedule
] + [FREE]
MIXED: dict[str, Any] = {"clip_norm": 0.5, "mixup": 0.2, "cutmix": 1.0, "class_weighting": 0.5}


@pytest.mark.parametrize("choice", CHOICES, ids=lambda choice: "-".join(choice.values()))
@pytest.mark.parametrize(
    "changes",
    [
        EVERYTHING_RANDOM | MIXED,
        {"trainable_depth": 0.0, "class_weighting": 1.0, "clip_norm": 0.1, "batch_size": 32},
    ],
    ids=["images", "features"],
)
def test_every_optimiser_and_schedule_resumes_bit_for_bit(
    digits: ImageStore, tmp_path: Path, choice: dict[str, Any], changes: dict[str, Any]
) -> None:
    levels = (5e8, 7e8, 9e8)
    recipe = make_recipe(**choice, **changes, target_flops=levels[-1])

    def trial(resume_from: str | None = None) -> Finetuning:
        return make_trial(digits, recipe, source=DROPS, levels=levels, resume_from=resume_from)

    whole = run(trial(), tmp_path / "whole")
    assert len(whole) >= 2
    for measured in whole[:-1]:
        rest = run(trial(rung_uri(tmp_path / "whole", measured.rung)), tmp_path / "rest")
        assert timeless(rest[-1]) == timeless(whole[-1])
        assert weights(tmp_path / "rest", whole[-1].rung) == weights(
            tmp_path / "whole", whole[-1].rung
        )


@pytest.mark.parametrize("mixing", [{"mixup": 0.2}, {"cutmix": 1.0}])
def test_a_head_trained_on_mixed_images_is_trained_on_images(
    digits: ImageStore, mixing: dict[str, Any]
) -> None:
    recipe = make_recipe(trainable_depth=0.0, **mixing)
    trial = make_trial(digits, recipe)
    (*_, last) = run(trial)
    passes = last.train_flops / last.inference_flops
    assert last.images_seen <= passes < last.images_seen + recipe.batch_size, "the trunk's, each"


def test_mixed_labels_and_weighted_classes_train_on_a_task_that_lacks_a_class(
    digits: ImageStore,
) -> None:
    train = digits.splits["train"]
    kept = train.labels != 2
    skewed = replace(
        digits,
        splits={
            **digits.splits,
            "train": Split(images=train.images[kept], labels=train.labels[kept]),
        },
    )
    (measured,) = run(
        make_trial(skewed, make_recipe(**MIXED | {"class_weighting": 1.0}), levels=(7e8,))
    )
    assert math.isfinite(measured.val_loss)


def test_a_trial_resumed_twice_is_billed_for_what_each_attempt_executes(
    digits: ImageStore, tmp_path: Path
) -> None:
    recipe = make_recipe(pruning_ratio=0.5)
    whole = run(make_trial(digits, recipe), tmp_path)
    again = make_trial(digits, recipe, resume_from=rung_uri(tmp_path, whole[0].rung))
    assert again.unbilled_flops == 0  # set up anew, and nothing executed
    again.advance()
    assert again.measurement is not None
    assert again.measurement.executed_flops == pytest.approx(
        whole[1].train_flops - whole[0].train_flops
    )
    assert again.measurement.train_seconds > whole[0].train_seconds


def test_seeds_make_the_run(digits: ImageStore) -> None:
    recipe = make_recipe(augmentation=0.5, target_flops=LEVELS[1])
    one, same, other = (
        [timeless(m) for m in run(make_trial(digits, recipe, seed=seed))] for seed in (1, 1, 2)
    )
    assert one == same
    assert one != other


def test_training_learns(digits: ImageStore) -> None:
    recipe = make_recipe(learning_rate=0.05, target_flops=4e9)
    curve = run(make_trial(digits, recipe, levels=(4e8, 4e9)))
    assert curve[-1].val_error < 0.5 < 0.75  # four classes: chance is 0.75
    assert curve[-1].val_loss < curve[0].val_loss


@pytest.mark.parametrize("ratio", [0.0, 0.5])
def test_compute_at_every_rung_is_preparation_and_steps_and_under_the_level(
    digits: ImageStore, ratio: float
) -> None:
    trial = make_trial(digits, make_recipe(pruning_ratio=ratio, batch_size=8))
    stops = trial.stops
    curve = run(trial)
    assert [m.rung for m in curve] == [s.rung for s in stops]
    assert [m.train_flops for m in curve] == [s.train_flops for s in stops]
    assert [m.images_seen for m in curve] == [8 * s.steps for s in stops]
    calibration = min(CALIBRATION_IMAGES, len(digits.splits["train"]))
    setup = calibration * curve[0].inference_flops if ratio else 0.0
    step = (curve[1].train_flops - curve[0].train_flops) / (stops[1].steps - stops[0].steps)
    for measured, stop in zip(curve, stops, strict=True):
        assert measured.train_flops == pytest.approx(setup + stop.steps * step)
        assert measured.train_flops <= LEVELS[measured.rung] < measured.train_flops + step
    assert sum(m.executed_flops for m in curve) == pytest.approx(curve[-1].train_flops)
    assert trial.unbilled_flops == 0
    evaluated = len(digits.splits["validation"]) * curve[0].inference_flops
    assert [m.eval_flops for m in curve] == [evaluated * (i + 1) for i in range(len(curve))]


def test_pruning_makes_it_smaller_and_each_image_cheaper(digits: ImageStore) -> None:
    dense, pruned = (make_trial(digits, make_recipe(pruning_ratio=r)) for r in (0.0, 0.5))
    assert pruned.stops[-1].steps > dense.stops[-1].steps
    dense.advance()
    pruned.advance()
    assert dense.measurement is not None
    assert pruned.measurement is not None
    assert pruned.measurement.params < dense.measurement.params
    assert pruned.measurement.inference_flops < dense.measurement.inference_flops


def test_what_is_frozen_keeps_its_values_and_its_statistics(
    digits: ImageStore, tmp_path: Path
) -> None:
    recipe = make_recipe(trainable_depth=0.4, learning_rate=0.1)
    curve = run(make_trial(digits, recipe), tmp_path)
    tensors = [load_checkpoint(rung_uri(tmp_path, m.rung), ("model", "measured"))[0] for m in curve]
    first, last = tensors[0]["model"], tensors[-1]["model"]
    moved = {name for name in first if not torch.equal(first[name], last[name])}
    assert moved == {
        name
        for name in first
        if name.startswith(("layer3.", "layer4.", "fc.")) and "downsample.0" not in name
    }
    for group in tensors:
        for name in first.keys() - moved:
            assert torch.equal(group["measured"][name], first[name])
    assert 0 < curve[0].updated_params < curve[0].params


def test_the_average_follows_weights_and_statistics_by_its_formula(
    digits: ImageStore, tmp_path: Path
) -> None:
    levels = tuple(6e7 * k for k in (1.0, 2.0, 3.0, 4.0))  # a step costs 5.84e7
    recipe = make_recipe(target_flops=levels[-1])
    trial = make_trial(digits, recipe, levels=levels)
    assert [stop.steps for stop in trial.stops] == [1, 2, 3, 4]
    run(trial, tmp_path)
    expected: dict[str, torch.Tensor] = {}
    for step in range(1, 5):
        tensors, _ = load_checkpoint(rung_uri(tmp_path, step - 1), ("model", "measured"))
        share = 9 / (step + 8)
        for name, value in tensors["model"].items():
            if not value.is_floating_point():
                assert torch.equal(tensors["measured"][name], value)
                continue
            before = expected.get(name, value)
            expected[name] = before + share * (value - before)
            torch.testing.assert_close(tensors["measured"][name], expected[name])


def test_an_absurd_learning_rate_diverges_and_is_billed_to_its_last_step(
    digits: ImageStore,
) -> None:
    recipe = make_recipe(learning_rate=1e6, pruning_ratio=0.5, target_flops=1e10)
    trial = make_trial(digits, recipe, levels=(1e10,))
    (stop,) = trial.stops
    trial.advance()
    assert trial.outcome is Outcome.DIVERGED
    assert trial.measurement is None
    assert 0 < trial.unbilled_flops < stop.train_flops  # it is seen long before the rung
    with pytest.raises(RuntimeError, match="The trial is over: diverged."):
        trial.advance()
    with pytest.raises(RuntimeError, match="none is measured"):
        trial.save("file:///nowhere")


def test_a_loss_that_is_finite_in_training_and_not_in_validation_diverges(
    digits: ImageStore,
) -> None:
    trial = make_trial(digits, make_recipe())
    trial.advance()
    assert trial.measurement is not None
    average = trial.average.get_parameter("fc.bias")
    with torch.no_grad():
        average.fill_(math.nan)
    trial.advance()
    assert trial.outcome is Outcome.DIVERGED
    assert trial.measurement.rung == 0, "the newest measurement stays the last good one"
    assert trial.unbilled_flops == pytest.approx(
        trial.stops[1].train_flops - trial.stops[0].train_flops
    )


def test_a_recipe_whose_first_step_is_too_dear_is_infeasible_and_its_preparation_counts(
    digits: ImageStore,
) -> None:
    levels = (1e6, 1e7)
    with pytest.raises(InfeasibleError, match="preparing costs .* and one step") as error:
        make_trial(digits, make_recipe(pruning_ratio=0.5, target_flops=1e7), levels=levels)
    assert error.value.spent_flops > 1e7
    with pytest.raises(InfeasibleError, match="preparing costs 0 FLOPs") as error:
        make_trial(digits, make_recipe(target_flops=1e7), levels=levels)
    assert error.value.spent_flops == 0


def test_an_image_that_shrinks_to_nothing_is_infeasible(digits: ImageStore) -> None:
    source = BackboneSource(model="test_convnext")
    with pytest.raises(InfeasibleError, match="ConvNeXt at 16 pixels"):
        make_trial(digits, make_recipe(), source=source)


def test_a_batch_of_one_is_infeasible_where_a_batch_norm_is_trained(digits: ImageStore) -> None:
    with pytest.raises(InfeasibleError, match="batch_size=1 leaves the batch norm conv1.1 "):
        make_trial(digits, make_recipe(batch_size=1))
    head_only = make_trial(digits, make_recipe(batch_size=1, trainable_depth=0.0, augmentation=0.1))
    head_only.advance()
    assert head_only.measurement is not None


def test_a_training_set_smaller_than_a_batch_is_seen_again_and_again(digits: ImageStore) -> None:
    train = digits.splits["train"]
    few = replace(
        digits,
        splits={
            **digits.splits,
            "train": Split(images=train.images[:3], labels=train.labels[:3]),
        },
    )
    trial = make_trial(few, make_recipe(batch_size=8, pruning_ratio=0.3))
    trial.advance()
    assert trial.measurement is not None
    assert trial.measurement.images_seen % 8 == 0


def test_training_writes_nothing_into_the_images(digits: ImageStore) -> None:
    before = digits.splits["train"].images.clone()
    run(make_trial(digits, make_recipe(augmentation=1.0, target_flops=LEVELS[0])))
    assert torch.equal(digits.splits["train"].images, before)


def test_a_checkpoint_is_safetensors_and_json(digits: ImageStore, tmp_path: Path) -> None:
    recipe = make_recipe(trainable_depth=0.0, target_flops=LEVELS[0])
    run(make_trial(digits, recipe), tmp_path)
    folder = tmp_path / "rung-000"
    assert {path.suffix for path in folder.iterdir()} == {".safetensors", ".json"}
    state = safetensors.torch.load_file(folder / "optimizer.safetensors")
    assert set(state) == {"momentum_buffer:fc.weight", "momentum_buffer:fc.bias"}, (
        "what is not trained has none"
    )
