"""SWR: a budget that every rung keeps to, a policy that learns and is paid for, merged deltas."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from optuna.samplers import RandomSampler
from torch.utils.flop_counter import FlopCounterMode

from search_spaces.draws import draw
from search_spaces.methods.swr import swr
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
from trainables.errors import InputError
from trainables.finetune import Finetuning
from trainables.images.store import ImageStore
from trainables.methods.swr import CHOOSING, Policy, Swr

GRANULARITIES = ("filter", "layer")


def recipe_of(
    *, budget: float = 0.3, granularity: str = "filter", penalty: float = 1.0, **changes: Any
) -> Recipe:
    settings = {"budget": budget, "granularity": granularity, "penalty": penalty}
    return make_recipe(method="swr", settings=settings, **{"target_flops": LEVELS[-1], **changes})


def transfer_of(trial: Finetuning) -> Swr:
    transfer = trial.transfer
    assert isinstance(transfer, Swr)
    return transfer


@pytest.mark.parametrize(
    ("optimizer", "granularity"), list(zip(Optimizer, ("filter", "layer", "filter"), strict=True))
)
def test_every_rung_keeps_to_the_budget_and_resumes(
    digits: ImageStore, tmp_path: Path, optimizer: Optimizer, granularity: str
) -> None:
    recipe = recipe_of(granularity=granularity, **optimized(optimizer))
    assert_keeps_to_budget(digits, recipe, tmp_path, phases=(CHOOSING,))


def test_it_exports_the_backbones_structure_and_filters_that_did_not_move(
    digits: ImageStore, tmp_path: Path
) -> None:
    weights = pretrained()
    model = assert_exports(digits, recipe_of(), tmp_path, weights=weights)
    assert 0 < sum(changed(model, weights).values()) < 0.3 * 373076
    partly = 0
    for name, weight in backbone_weights(model).items():
        moved = (weight != weights[name]).flatten(1).any(1)
        partly += 0 < int(moved.sum()) < len(moved)
    assert partly > 3


def test_a_budget_of_all_is_plain_finetuning(digits: ImageStore) -> None:
    assert_plain_finetuning(digits, recipe_of(budget=1.0, trainable_depth=0.5))


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_the_policys_passes_are_paid_for(digits: ImageStore, granularity: str) -> None:
    ours = make_trial(digits, recipe_of(granularity=granularity))
    full = make_trial(digits, recipe_of(budget=1.0))
    policy = transfer_of(ours).policy
    with FlopCounterMode(display=False) as counter:
        policy().sum().backward()
    difference = ours.stops[0].train_flops / ours.stops[0].steps
    difference -= full.stops[0].train_flops / full.stops[0].steps
    assert difference == policy.step_flops == counter.get_total_flops() > 0


def test_a_policy_learns_what_helps_under_its_budget() -> None:
    features = torch.linspace(-1, 1, 50)[:, None]
    policy = Policy(features, seed=1)
    assert torch.equal(policy(), torch.zeros(50))
    adam = torch.optim.Adam(policy.parameters(), lr=0.02)
    for _ in range(60):
        adam.zero_grad()
        (policy().sigmoid() * -features.squeeze()).sum().backward()  # opening the last ones helps
        adam.step()
    assert policy().argsort()[-20:].float().mean() > 35


def test_a_dear_budget_closes_gates_while_it_is_learnt(digits: ImageStore) -> None:
    def logits(penalty: float) -> torch.Tensor:
        recipe = recipe_of(penalty=penalty, budget=0.05)
        trial = make_trial(digits, recipe, levels=LEVELS, weights=pretrained())
        run(trial)
        return transfer_of(trial).scores()

    free, pulled = logits(0.0), logits(100.0)
    assert len(free.unique()) > 100
    assert pulled.mean() < free.mean() - 0.01


def test_the_same_gates_are_drawn_again(digits: ImageStore) -> None:
    def gates(step: int) -> torch.Tensor:
        trial = make_trial(digits, recipe_of(), weights=pretrained())
        transfer = transfer_of(trial)
        transfer.begin_step(step=step, total_steps=100)
        return torch.cat([delta.open.flatten() for delta in transfer.deltas])

    first = gates(3)
    assert torch.equal(gates(3), first)
    assert not torch.equal(gates(4), first)
    assert 0.4 < first.float().mean() < 0.6


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"budget": 1.2}, "budget=1.2 must be less than or equal to 1"),
        ({"budget": 0.0}, "budget=0.0 must be greater than 0"),
        ({"penalty": -1.0}, "penalty=-1.0 must be greater than or equal to 0"),
        ({"granularity": "block"}, "granularity='block' must be 'filter' or 'layer'"),
        ({"budget": 0.005}, "smallest filter of 27 values; choose 0.006 or more"),
        ({"trainable_depth": 0.5}, "trainable_depth=0.5 must be 1; the budget alone says"),
    ],
)
def test_bad_settings_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        check(recipe_of(**changes))


def test_what_the_space_draws_is_sound_and_trains(digits: ImageStore) -> None:
    problem = Problem(rungs=(LEVELS[-1],), native_resolution=16, train_images=96, classes=4)
    drawn = [draw(swr, {}, problem, RandomSampler(seed=seed)).recipe for seed in range(40)]
    for recipe in drawn:
        check(recipe)
    assert {recipe.settings["granularity"] for recipe in drawn} == set(GRANULARITIES)
    trial = make_trial(digits, replace(drawn[0], batch_size=16), levels=LEVELS[-1:])
    run(trial)
    assert trial.stops[-1].steps >= 2
    assert trial.measurement is not None
