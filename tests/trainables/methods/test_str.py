"""STR learns its thresholds, and what it ends with is reported."""

from math import log
from pathlib import Path
from typing import Any

import pytest
import torch
from optuna.samplers import RandomSampler
from torch import nn

from search_spaces.draws import check_space, draw
from search_spaces.methods.str import str as space
from search_spaces.problem import Problem
from search_spaces.recipe import Optimizer, Recipe, Schedule
from tests.trainables.methods.method_contract import (
    assert_exports,
    assert_plain_finetuning,
    assert_resumes,
    check,
    pretrained,
)
from tests.trainables.recipes import LEVELS, SMALL, make_recipe, make_trial, run
from trainables.backbones import build as backbones
from trainables.backbones.layers import backbone_weights
from trainables.backbones.source import BackboneSource
from trainables.errors import InputError
from trainables.finetune import Finetuning
from trainables.images.store import ImageStore
from trainables.measurement import Outcome
from trainables.mechanisms.reparametrization import merge, parametrizations
from trainables.method import Conditions, load_method
from trainables.methods.str import COUNT_PERIOD, SoftThreshold
from trainables.rungs import rung_levels

PROBLEM = Problem(rungs=LEVELS, native_resolution=16, train_images=96, classes=4)
LONGER = rung_levels(min_flops=5e8, max_flops=1.3e9, per_decade=5)
"""The zeros of step 0 must be known after a rung, and those of step 16 counted anew."""


def recipe_of(
    *, initial_threshold: float = 0.3, final_threshold: float = 2.0, **changes: Any
) -> Recipe:
    settings = {"initial_threshold": initial_threshold, "final_threshold": final_threshold}
    return make_recipe(method="str", settings=settings, **changes)


def backbone() -> nn.Module:
    model = backbones.build(SMALL, num_classes=7)
    model.load_state_dict(pretrained())
    return model


def thresholds(trial: Finetuning) -> dict[str, float]:
    parts = parametrizations(trial.model).items()
    return {
        n: float(part.threshold.detach()) for n, part in parts if isinstance(part, SoftThreshold)
    }


def mean_sizes() -> dict[str, float]:
    return {
        name: float(w.detach().abs().mean()) for name, w in backbone_weights(backbone()).items()
    }


def zeros(model: nn.Module) -> int:
    return sum(int((weight == 0).sum()) for weight in backbone_weights(model).values())


def empty(num_classes: int) -> nn.Module:
    return nn.Sequential(nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(48, 4))


def test_values_shrink_by_the_threshold_and_small_ones_to_zero() -> None:
    v = torch.tensor([-3.0, -1.0, 0.5, 1.5])  # of mean size 1.5
    part = SoftThreshold(v, level=log(2 / 3))
    torch.testing.assert_close(part(v), torch.tensor([-2.0, 0.0, 0.0, 0.5]))


def test_a_threshold_falls_where_larger_weights_would_lower_the_loss() -> None:
    v = torch.tensor([-3.0, -1.0, 0.5, 1.5])
    part = SoftThreshold(v, level=0.0)
    (-part(v).abs().sum()).backward()
    assert part.s.grad is not None
    assert float(part.s.grad) > 0
    torch.testing.assert_close(part.threshold.detach(), torch.tensor([1.5]))


@pytest.mark.parametrize("optimizer", Optimizer)
def test_thresholds_learn_and_the_sparsity_grows(digits: ImageStore, optimizer: Optimizer) -> None:
    recipe = recipe_of(optimizer=optimizer, schedule=Schedule.CONSTANT)
    trial = make_trial(digits, recipe, weights=pretrained())
    first, found = thresholds(trial), []
    assert first == pytest.approx({name: 0.3 * size for name, size in mean_sizes().items()})
    while trial.outcome is Outcome.RUNNING:
        trial.advance()
        found.append(zeros(trial.measured_model))
    assert found == sorted(set(found))
    last = thresholds(trial)
    assert all(last[name] > first[name] for name in first)
    learned = [p.item() for name, p in trial.model.named_parameters() if name.endswith(".s")]
    assert 0.0 not in learned
    assert len(set(learned)) == len(learned) == len(first)  # each layer its own


def test_without_learning_the_threshold_goes_where_it_is_told(digits: ImageStore) -> None:
    trial = make_trial(digits, recipe_of(learning_rate=1e-9), weights=pretrained())
    run(trial)
    expected = {name: 2.0 * size for name, size in mean_sizes().items()}
    assert thresholds(trial) == pytest.approx(expected, rel=1e-4)


def test_the_sparsity_is_reported(digits: ImageStore) -> None:
    trial = make_trial(digits, recipe_of(), weights=pretrained())
    measured = run(trial)[-1]
    gone = zeros(trial.measured_model)
    assert gone > 0.3 * measured.params
    assert measured.nonzero_params == sum(
        int((p != 0).sum()) for p in trial.measured_model.parameters()
    )
    assert measured.nonzero_params <= measured.params - gone
    assert measured.sparse_inference_flops is not None
    assert measured.sparse_inference_flops < 0.8 * measured.inference_flops
    assert measured.sparse_train_flops is not None
    assert measured.sparse_train_flops < measured.train_flops


def test_updated_params_leave_out_the_zeros_of_the_trained_model(digits: ImageStore) -> None:
    trial = make_trial(digits, recipe_of(), weights=pretrained())
    measured = run(trial)[-1]
    model = trial.model
    merge(model)
    assert measured.updated_params == measured.params - zeros(model)


def test_it_costs_what_full_finetuning_costs(digits: ImageStore) -> None:
    full = run(make_trial(digits, make_recipe(method="full", settings={})))
    ours = run(make_trial(digits, recipe_of()))
    assert [m.train_flops for m in ours] == [m.train_flops for m in full]


def test_a_resumed_run_is_the_run_itself(digits: ImageStore, tmp_path: Path) -> None:
    recipe = recipe_of(target_flops=LONGER[-1])
    steps = [stop.steps for stop in make_trial(digits, recipe, levels=LONGER).stops]
    assert steps[-2] < COUNT_PERIOD < steps[-1]
    assert_resumes(digits, recipe, tmp_path, levels=LONGER, weights=pretrained())


def test_a_resumed_schedule_free_run_is_the_run_itself(digits: ImageStore, tmp_path: Path) -> None:
    recipe = recipe_of(optimizer=Optimizer.SCHEDULE_FREE_ADAMW, schedule=Schedule.CONSTANT)
    assert_resumes(digits, recipe, tmp_path, weights=pretrained())


def test_no_threshold_is_plain_finetuning(digits: ImageStore) -> None:
    recipe = recipe_of(initial_threshold=0.0, final_threshold=0.0)
    assert_plain_finetuning(digits, recipe, weights=pretrained())


def test_it_exports_the_backbones_structure_with_its_zeros(
    digits: ImageStore, tmp_path: Path
) -> None:
    model = assert_exports(digits, recipe_of(), tmp_path, weights=pretrained())
    assert zeros(model) > 0.3 * sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize(
    ("initial", "final", "complaint"),
    [
        (-0.1, 1.0, "initial_threshold=-0.1 must be greater than or equal to 0"),
        (0.1, 5.0, "final_threshold=5.0 must be less than or equal to 4"),
        (0.0, 1.0, "initial_threshold=0 and final_threshold=1 must both be 0"),
        (2.0, 1.0, "initial_threshold=2 and final_threshold=1 must both be 0"),
    ],
)
def test_settings_out_of_range_are_refused(initial: float, final: float, complaint: str) -> None:
    with pytest.raises(InputError, match=complaint):
        check(recipe_of(initial_threshold=initial, final_threshold=final))


def test_a_depth_below_1_and_a_model_without_weights_are_refused() -> None:
    with pytest.raises(InputError, match="str with trainable_depth=0.5 must be 1"):
        check(recipe_of(trainable_depth=0.5))
    with pytest.raises(InputError, match="has no convolution or linear layer below its head"):
        check(recipe_of(), source=BackboneSource(model=f"{__name__}:empty"))


def test_every_recipe_of_the_space_passes_and_one_trains(digits: ImageStore) -> None:
    model = backbone()
    for recipe in check_space(space, {}, PROBLEM).recipes:
        load_method(recipe.method).check(recipe, Conditions(model=model, source_task=False))
    ranges = {"target_rung": len(LEVELS) - 1, "batch_size": 16, "resolution": 16}
    drawn = draw(space, ranges, PROBLEM, RandomSampler(seed=1))
    curve = run(make_trial(digits, drawn.recipe, weights=pretrained()))
    assert curve[-1].images_seen >= 2 * 16
