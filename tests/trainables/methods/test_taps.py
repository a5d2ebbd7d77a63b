"""TAPS: a budget that every rung keeps to, scores that learn, and layers that stay as they were."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from optuna.samplers import RandomSampler
from torch import nn

from search_spaces.draws import draw
from search_spaces.methods.taps import taps
from search_spaces.problem import Problem
from search_spaces.recipe import Optimizer, Recipe
from tests.trainables.budgets import LEVELS, assert_keeps_to_budget, optimized
from tests.trainables.methods.method_contract import (
    assert_exports,
    assert_plain_finetuning,
    changed,
    check,
    pretrained,
)
from tests.trainables.recipes import make_recipe, make_trial, run
from trainables.backbones.layers import backbone_weights
from trainables.backbones.source import BackboneSource
from trainables.errors import InputError
from trainables.images.store import ImageStore
from trainables.methods.taps import CHOOSING, WARM_UP, Taps

BUDGET = 0.3


def recipe_of(*, budget: float = BUDGET, penalty: float = 1.0, **changes: Any) -> Recipe:
    settings = {"budget": budget, "penalty": penalty}
    return make_recipe(method="taps", settings=settings, **{"target_flops": LEVELS[-1], **changes})


@pytest.mark.parametrize("optimizer", Optimizer)
def test_every_rung_keeps_to_the_budget_and_resumes(
    digits: ImageStore, tmp_path: Path, optimizer: Optimizer
) -> None:
    recipe = recipe_of(**optimized(optimizer))
    assert_keeps_to_budget(digits, recipe, tmp_path, phases=(WARM_UP, CHOOSING))


def test_it_exports_the_backbones_structure(digits: ImageStore, tmp_path: Path) -> None:
    weights = pretrained()
    model = assert_exports(digits, recipe_of(), tmp_path, weights=weights)
    moved = changed(model, weights)
    layers = [moved[name] for name in backbone_weights(model)]
    assert 0 < sum(count > 0 for count in layers) < len(layers)


def test_a_budget_of_all_is_plain_finetuning(digits: ImageStore) -> None:
    assert_plain_finetuning(digits, recipe_of(budget=1.0, trainable_depth=0.5))


def test_a_step_costs_what_one_of_finetuning_does(digits: ImageStore) -> None:
    ours, full = make_trial(digits, recipe_of()), make_trial(digits, recipe_of(budget=1.0))
    assert [m.train_flops for m in run(ours)] == [m.train_flops for m in run(full)]


def test_scores_learn_and_the_penalty_closes_layers(digits: ImageStore) -> None:
    def scores(penalty: float) -> torch.Tensor:
        trial = make_trial(digits, recipe_of(penalty=penalty), levels=LEVELS, weights=pretrained())
        curve = run(trial)
        assert isinstance(trial.transfer, Taps)
        chosen = trial.transfer.choose()
        open_values = int(trial.transfer.unit_sizes[chosen].sum())
        assert curve[-1].updated_params == 2080 + 97 * 4 + open_values
        return torch.tensor([delta.score.item() for delta in trial.transfer.deltas])

    free, pulled = scores(0.0), scores(20.0)
    assert len(free.unique()) > 5
    assert (free > 0.1).all()
    assert (pulled < 0.1).any()
    assert pulled.mean() < free.mean()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"budget": 1.2, "penalty": 1.0}, "budget=1.2 must be less than or equal to 1"),
        ({"budget": 0.0, "penalty": 1.0}, "budget=0.0 must be greater than 0"),
        ({"budget": 0.5, "penalty": -1.0}, "penalty=-1.0 must be greater than or equal to 0"),
        ({"budget": 0.5}, "penalty is missing; the method's settings are budget, penalty"),
        ({"budget": 0.006, "penalty": 1.0}, "smallest layer of 432 values; choose 0.007 or more"),
    ],
)
def test_bad_settings_are_refused(settings: dict[str, float], message: str) -> None:
    with pytest.raises(InputError, match=message):
        check(make_recipe(method="taps", settings=settings))


def test_a_depth_below_all_is_refused() -> None:
    with pytest.raises(InputError, match="trainable_depth=0.5 must be 1; the budget alone says"):
        check(recipe_of(trainable_depth=0.5))


def test_a_model_of_a_head_alone_is_refused() -> None:
    source = BackboneSource(model=f"{__name__}:head_alone")
    with pytest.raises(InputError, match="linear layers below the head, and Sequential has none"):
        check(recipe_of(), source=source)


def head_alone(num_classes: int) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.BatchNorm1d(768), nn.Linear(768, num_classes))


def test_what_the_space_draws_is_sound_and_trains(digits: ImageStore) -> None:
    problem = Problem(rungs=(LEVELS[-1],), native_resolution=16, train_images=96, classes=4)
    drawn = [draw(taps, {}, problem, RandomSampler(seed=seed)).recipe for seed in range(40)]
    for recipe in drawn:
        check(recipe)
    budgets = [recipe.settings["budget"] for recipe in drawn]
    assert 0.05 <= min(budgets) < 0.1
    assert 0.4 < max(budgets) <= 0.8
    trial = make_trial(digits, replace(drawn[0], batch_size=16), levels=LEVELS[-1:])
    run(trial)
    assert trial.stops[-1].steps >= 2
    assert trial.measurement is not None
