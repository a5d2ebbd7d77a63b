"""TAPS: a budget that every rung keeps to, scores that learn, and layers that stay as they were."""

from typing import Any

import pytest
import torch

from search_spaces.draws import check_space
from search_spaces.methods.taps import taps
from tests.trainables.methods.budgets import assert_keeps_to_budget
from tests.trainables.methods.example_runs import RunOf
from tests.trainables.methods.examples.taps import EXAMPLE, EXAMPLES
from tests.trainables.methods.method_examples import PROBLEM
from tests.trainables.recipes import run
from trainables.backbones.layers import backbone_weights
from trainables.errors import InputError
from trainables.images.store import ImageStore
from trainables.methods.taps import CHOOSING, WARM_UP, Taps


@pytest.mark.parametrize("name", EXAMPLES.trained)
def test_every_rung_keeps_to_the_budget(run_of: RunOf, name: str) -> None:
    assert_keeps_to_budget(run_of("taps", name), phases=(WARM_UP, CHOOSING))


def test_it_exports_layers_that_did_not_move(run_of: RunOf) -> None:
    whole = run_of("taps", "sgd")
    layers = [whole.changed()[name] for name in backbone_weights(whole.exported.module)]
    assert 0 < sum(count > 0 for count in layers) < len(layers)


def test_a_step_costs_what_one_of_finetuning_does(digits: ImageStore) -> None:
    ours, full = EXAMPLE.trial(digits), EXAMPLE.but(settings={"budget": 1.0}).trial(digits)
    assert [m.train_flops for m in run(ours)] == [m.train_flops for m in run(full)]


def test_scores_learn_and_the_penalty_closes_layers(digits: ImageStore) -> None:
    def scores(penalty: float) -> torch.Tensor:
        trial = EXAMPLE.but(settings={"penalty": penalty}).trial(digits)
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
        ({"budget": 1.2}, "budget=1.2 must be less than or equal to 1"),
        ({"budget": 0.0}, "budget=0.0 must be greater than 0"),
        ({"penalty": -1.0}, "penalty=-1.0 must be greater than or equal to 0"),
        ({"budget": 0.006}, "smallest layer of 432 values; choose 0.007 or more"),
    ],
)
def test_bad_settings_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        EXAMPLE.but(settings=settings).check()


def test_its_space_draws_small_budgets_and_large_ones() -> None:
    budgets = [float(r.settings["budget"]) for r in check_space(taps, {}, PROBLEM).recipes]
    assert 0.05 <= min(budgets) < 0.1
    assert 0.4 < max(budgets) <= 0.8
