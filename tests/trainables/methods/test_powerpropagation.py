"""Powerpropagation begins where the backbone is and ends as sparse as asked."""

from copy import deepcopy
from pathlib import Path

import pytest
import torch
from optuna.samplers import RandomSampler
from torch import nn

from search_spaces.draws import check_space, draw
from search_spaces.methods.powerpropagation import powerpropagation
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
from trainables.images.store import ImageStore
from trainables.measurement import Outcome
from trainables.mechanisms.reparametrization import merge
from trainables.method import Conditions, load_method
from trainables.methods.powerpropagation import Power, Powerpropagation
from trainables.rungs import rung_levels

AT_A_RUNG = 5 / 13
"""The trial of `LEVELS` takes 13 steps, and its rungs lie at 3, 5, 8 and 13."""
EVERY_STEP = rung_levels(min_flops=2e8, max_flops=8e8, per_decade=60)
PROBLEM = Problem(rungs=LEVELS, native_resolution=16, train_images=96, classes=4)


def recipe_of(
    *, alpha: float = 3.0, sparsity: float = 0.8, prune_at: float = 0.5, **changes: object
) -> Recipe:
    settings = {"alpha": alpha, "sparsity": sparsity, "prune_at": prune_at}
    return make_recipe(method="powerpropagation", settings=settings, **changes)


def backbone() -> nn.Module:
    model = backbones.build(SMALL, num_classes=7)
    model.load_state_dict(pretrained())
    return model


def zeros(model: nn.Module) -> int:
    return sum(int((weight == 0).sum()) for weight in backbone_weights(model).values())


def values(model: nn.Module) -> int:
    return sum(weight.numel() for weight in backbone_weights(model).values())


def empty(num_classes: int) -> nn.Module:
    return nn.Sequential(nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(48, 4))


@pytest.mark.parametrize("alpha", [1.25, 2.0, 5.0])
def test_the_effective_weights_at_step_0_are_the_backbones(alpha: float) -> None:
    model = backbone()
    Powerpropagation(alpha=alpha, sparsity=0.5, prune_at=0.5).attach(model)
    merge(model)
    for name, weight in backbone_weights(model).items():
        torch.testing.assert_close(weight.detach(), pretrained()[name], rtol=1e-6, atol=0)


def test_alpha_1_trains_the_weights_themselves() -> None:
    model = backbone()
    Powerpropagation(alpha=1.0, sparsity=0.5, prune_at=0.5).attach(model)
    assert model.state_dict().keys() == pretrained().keys()


def test_a_weight_of_zero_has_a_gradient_of_zero() -> None:
    theta = torch.tensor([-0.25, 0.0, 0.25], requires_grad=True)
    Power(1.5)(theta).sum().backward()
    assert theta.grad is not None
    torch.testing.assert_close(theta.grad, torch.tensor([0.75, 0.0, 0.75]))


@pytest.mark.parametrize("alpha", [1.0, 3.0])
@pytest.mark.parametrize("prune_at", [0.0, AT_A_RUNG, 1.0])
def test_every_rung_is_exactly_as_sparse_as_asked(
    digits: ImageStore, alpha: float, prune_at: float
) -> None:
    recipe = recipe_of(alpha=alpha, prune_at=prune_at)
    trial = make_trial(digits, recipe, weights=pretrained())
    gone = round(0.8 * values(backbone()))
    while trial.outcome is Outcome.RUNNING:
        trial.advance()
        measured = trial.measurement
        assert measured is not None
        assert zeros(trial.measured_model) == gone
        assert measured.updated_params == measured.params - gone
        assert measured.sparse_inference_flops < 0.5 * measured.inference_flops


@pytest.mark.parametrize("optimizer", Optimizer)
def test_what_is_pruned_stays_pruned_after_every_step(
    digits: ImageStore, optimizer: Optimizer
) -> None:
    schedule = Schedule.CONSTANT
    recipe = recipe_of(optimizer=optimizer, schedule=schedule, weight_decay=0.05, clip_norm=1.0)
    trial = make_trial(digits, recipe, weights=pretrained(), levels=EVERY_STEP)
    steps, model, pruned = [stop.steps for stop in trial.stops], trial.model, []
    assert steps == list(range(steps[0], steps[-1] + 1))
    while trial.outcome is Outcome.RUNNING:
        trial.advance()
        thetas = [p for name, p in model.named_parameters() if name.endswith("original")]
        pruned.append(torch.cat([theta.detach().flatten() == 0 for theta in thetas]))
        assert zeros(trial.measured_model) == round(0.8 * len(pruned[-1]))
    before = sum(taken <= round(0.5 * steps[-1]) for taken in steps)
    assert 1 < before < len(steps) - 1
    assert not any(where.any() for where in pruned[:before])
    assert int(pruned[-1].sum()) == round(0.8 * len(pruned[-1]))
    assert all(torch.equal(where, pruned[-1]) for where in pruned[before:])


def test_the_finished_model_is_the_merged_average_cut_by_its_own_magnitudes(
    digits: ImageStore,
) -> None:
    trial = make_trial(digits, recipe_of(prune_at=1.0), weights=pretrained())
    trial.advance()
    average = trial.average
    before = {name: value.clone() for name, value in average.state_dict().items()}
    effective = {n: m.weight for n, m in average.named_modules() if isinstance(m, nn.Conv2d)}
    finished = dict(trial.measured_model.named_modules())
    kept, gone = [], []
    for name, weight in effective.items():
        mask = finished[name].weight != 0
        assert torch.equal(finished[name].weight[mask], weight[mask])
        kept.append(weight[mask].abs())
        gone.append(weight[~mask].abs())
    assert torch.cat(gone).max() <= torch.cat(kept).min()
    assert all(torch.equal(v, before[n]) for n, v in average.state_dict().items())


def test_a_schedule_free_average_is_cut_before_its_norms_are_made(digits: ImageStore) -> None:
    recipe = recipe_of(optimizer=Optimizer.SCHEDULE_FREE_ADAMW, schedule=Schedule.CONSTANT)
    trial = make_trial(digits, recipe, weights=pretrained())
    trial.advance()
    average = deepcopy(trial.average)
    merge(average)
    assert zeros(average) == round(0.8 * values(average))
    again = trial.measured_model.state_dict()
    assert all(torch.equal(value, again[name]) for name, value in average.state_dict().items())


def test_it_costs_what_full_finetuning_costs(digits: ImageStore) -> None:
    full = run(make_trial(digits, make_recipe(method="full", settings={})))
    powers = run(make_trial(digits, recipe_of()))
    assert [m.train_flops for m in powers] == [m.train_flops for m in full]
    assert [m.sparse_train_flops for m in powers[:2]] == [m.train_flops for m in full[:2]]
    assert powers[-1].sparse_train_flops < 0.8 * full[-1].train_flops


@pytest.mark.parametrize(
    ("optimizer", "prune_at"),
    [
        (Optimizer.SGD, AT_A_RUNG),
        (Optimizer.ADAMW, 0.5),
        (Optimizer.SCHEDULE_FREE_ADAMW, 0.5),
    ],
)
def test_a_resumed_run_is_the_run_itself(
    digits: ImageStore, tmp_path: Path, optimizer: Optimizer, prune_at: float
) -> None:
    recipe = recipe_of(optimizer=optimizer, schedule=Schedule.CONSTANT, prune_at=prune_at)
    assert_resumes(digits, recipe, tmp_path, weights=pretrained())


def test_alpha_1_and_no_sparsity_is_plain_finetuning(digits: ImageStore) -> None:
    assert_plain_finetuning(digits, recipe_of(alpha=1.0, sparsity=0.0), weights=pretrained())


def test_it_exports_the_backbones_structure(digits: ImageStore, tmp_path: Path) -> None:
    model = assert_exports(digits, recipe_of(), tmp_path, weights=pretrained())
    assert zeros(model) == round(0.8 * values(model))


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"alpha": 0.5, "sparsity": 0.5}, "alpha=0.5 must be greater than or equal to 1"),
        ({"alpha": 6.0, "sparsity": 0.5}, "alpha=6.0 must be less than or equal to 5"),
        ({"alpha": 2.0, "sparsity": 1.0}, "sparsity=1.0 must be less than 1"),
        ({"alpha": 2.0, "sparsity": 0.9999999}, "each keeps at least one"),
        ({"alpha": 2.0, "sparsity": 0.5, "prune_at": 1.5}, "prune_at=1.5 must be less than"),
        ({"alpha": 2.0}, "sparsity is missing"),
    ],
)
def test_settings_out_of_range_are_refused(settings: dict[str, float], complaint: str) -> None:
    with pytest.raises(InputError, match=complaint):
        check(make_recipe(method="powerpropagation", settings=settings))


def test_a_depth_below_1_and_a_model_without_weights_are_refused() -> None:
    with pytest.raises(InputError, match="trainable_depth=0.5 must be 1"):
        check(recipe_of(trainable_depth=0.5))
    with pytest.raises(InputError, match="has no convolution or linear layer below its head"):
        check(recipe_of(), source=BackboneSource(model=f"{__name__}:empty"))


def test_every_recipe_of_the_space_passes_and_one_trains(digits: ImageStore) -> None:
    recipes = check_space(powerpropagation, {}, PROBLEM).recipes
    model = backbone()
    for recipe in recipes:
        load_method(recipe.method).check(recipe, Conditions(model=model, source_task=False))
    ranges = {"target_rung": len(LEVELS) - 1, "batch_size": 16, "resolution": 16}
    drawn = draw(powerpropagation, ranges, PROBLEM, RandomSampler(seed=1))
    curve = run(make_trial(digits, drawn.recipe, weights=pretrained()))
    assert curve[-1].images_seen >= 2 * 16
