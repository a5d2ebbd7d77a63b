"""SWR: a budget that every rung keeps to, a policy that learns and is paid for, merged deltas."""

from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from search_spaces.draws import check_space
from search_spaces.methods.swr import swr as space
from tests.trainables.methods.budgets import assert_keeps_to_budget
from tests.trainables.methods.example_runs import RunOf
from tests.trainables.methods.examples.swr import EXAMPLE, EXAMPLES
from tests.trainables.methods.method_examples import PROBLEM
from tests.trainables.recipes import run
from trainables.backbones.layers import backbone_weights
from trainables.errors import InputError
from trainables.finetune import Finetuning
from trainables.images.store import ImageStore
from trainables.methods.swr import CHOOSING, Policy, Swr


def transfer_of(trial: Finetuning) -> Swr:
    transfer = trial.transfer
    assert isinstance(transfer, Swr)
    return transfer


@pytest.mark.parametrize("name", EXAMPLES.trained)
def test_every_rung_keeps_to_the_budget(run_of: RunOf, name: str) -> None:
    assert_keeps_to_budget(run_of("swr", name), phases=(CHOOSING,))


def test_it_exports_filters_that_did_not_move(run_of: RunOf) -> None:
    whole = run_of("swr", "sgd")
    weights = whole.example.weights()
    assert 0 < sum(whole.changed().values()) < 0.3 * 373076
    partly = 0
    for name, weight in backbone_weights(whole.exported.module).items():
        moved = (weight != weights[name]).flatten(1).any(1)
        partly += 0 < int(moved.sum()) < len(moved)
    assert partly > 3


@pytest.mark.parametrize("granularity", ["filter", "layer"])
def test_the_policys_passes_are_paid_for(digits: ImageStore, granularity: str) -> None:
    ours = EXAMPLE.but(settings={"granularity": granularity}).trial(digits)
    full = EXAMPLE.but(settings={"budget": 1.0}).trial(digits)
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
        trial = EXAMPLE.but(settings={"penalty": penalty, "budget": 0.05}).trial(digits)
        run(trial)
        return transfer_of(trial).scores()

    free, pulled = logits(0.0), logits(100.0)
    assert len(free.unique()) > 100
    assert pulled.mean() < free.mean() - 0.01


def test_the_same_gates_are_drawn_again(digits: ImageStore) -> None:
    def gates(step: int) -> torch.Tensor:
        transfer = transfer_of(EXAMPLE.trial(digits))
        transfer.before_forward(step=step, total_steps=100)
        return torch.cat([delta.open.flatten() for delta in transfer.deltas])

    first = gates(3)
    assert torch.equal(gates(3), first)
    assert not torch.equal(gates(4), first)
    assert 0.4 < first.float().mean() < 0.6


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"budget": 1.2}, "budget=1.2 must be less than or equal to 1"),
        ({"budget": 0.0}, "budget=0.0 must be greater than 0"),
        ({"penalty": -1.0}, "penalty=-1.0 must be greater than or equal to 0"),
        ({"granularity": "block"}, "granularity='block' must be 'filter' or 'layer'"),
        ({"budget": 0.005}, "smallest filter of 27 values; choose 0.006 or more"),
    ],
)
def test_bad_settings_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        EXAMPLE.but(settings=settings).check()


def test_its_space_draws_filters_and_layers() -> None:
    drawn = {recipe.settings["granularity"] for recipe in check_space(space, {}, PROBLEM).recipes}
    assert drawn == {"filter", "layer"}
