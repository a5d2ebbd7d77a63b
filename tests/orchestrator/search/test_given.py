"""Values given beforehand reach the recipe where the space has them, and nothing else does."""

from math import inf, nan
from typing import Any

import optuna
import pytest
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.samplers import RandomSampler
from optuna.trial import FrozenTrial

from orchestrator.search.given import GivenDraws, NotOfferedError, nearest, offered
from search_spaces.draws import draw
from search_spaces.methods.full import full
from tests.orchestrator.search.asked_trials import PROBLEM

RATIO = FloatDistribution(0.0, 0.95, step=0.05)
RATE = FloatDistribution(1e-4, 1e-1, log=True)
SIDES = IntDistribution(16, 32, step=8)
CHOICES = CategoricalDistribution(("l1", "l2", True, 0.0))


@pytest.mark.parametrize(
    ("distribution", "value", "own"),
    [
        (RATIO, 0.3, 0.3),
        (RATIO, 0, 0.0),
        (RATE, 0.1, 0.1),
        (SIDES, 24.0, 24),
        (CHOICES, "l2", "l2"),
        (CHOICES, True, True),
        (CHOICES, 0, 0.0),
    ],
)
def test_a_value_on_offer_is_the_parameters_own(
    distribution: BaseDistribution, value: Any, own: Any
) -> None:
    found = offered(distribution, value)
    assert found == own
    assert type(found) is type(own)
    assert distribution._contains(distribution.to_internal_repr(found))


@pytest.mark.parametrize(
    ("distribution", "value", "rule"),
    [
        (RATIO, 1.3, r"must lie within \[0, 0.95\], what the search space offers"),
        (RATIO, inf, "must lie within"),
        (RATIO, 0.33, "is no value of the search space; the nearest one is 0.35"),
        (RATIO, nan, "must be a number"),
        (RATIO, True, "must be a number"),
        (RATE, "fast", r"must be a number; choose within \[0.0001, 0.1\]"),
        (SIDES, 24.5, "nearest one is 24"),
        (CHOICES, 1, "is not offered; choose among l1, l2, True, 0.0"),
        (CHOICES, False, "is not offered"),
        (CHOICES, None, "is not offered"),
    ],
)
def test_a_value_that_is_not_on_offer_is_refused_with_the_rule(
    distribution: BaseDistribution, value: Any, rule: str
) -> None:
    with pytest.raises(NotOfferedError, match=rule):
        offered(distribution, value)


@pytest.mark.parametrize(
    ("distribution", "value", "near"),
    [(RATIO, 2, 0.95), (RATIO, 0.33, 0.35), (RATE, 1.0, 0.1), (SIDES, 1e9, 32), (SIDES, 21.4, 24)],
)
def test_the_nearest_number_is_on_offer(
    distribution: BaseDistribution, value: float, near: float
) -> None:
    found = nearest(distribution, value)
    assert found == pytest.approx(near)
    assert distribution._contains(distribution.to_internal_repr(found))


def test_a_choice_has_no_nearest() -> None:
    assert nearest(CHOICES, 0.1) is None


def test_the_rest_is_what_the_other_sampler_draws() -> None:
    values = {"optimizer": "adamw", "batch_size": 64, "learning_rate": 0.02, "augmentation": 7.0}
    given = GivenDraws(values, RandomSampler(seed=3))
    drawn = draw(full, {}, PROBLEM, given)
    assert drawn.recipe.optimizer == "adamw"
    assert drawn.recipe.batch_size == 64
    assert drawn.params["adamw_rate"] == drawn.recipe.learning_rate == 0.02
    assert 0 <= drawn.recipe.augmentation <= 1
    assert given.taken == {
        "optimizer": "optimizer",
        "batch_size": "batch_size",
        "adamw_rate": "learning_rate",
    }
    assert list(given.refused) == ["augmentation"]
    others = {name for name in drawn.params if name not in given.taken}
    assert "weight_decay" not in others
    assert {"adamw_decay", "label_smoothing", "target_rung"} <= others


def test_a_number_out_of_range_may_give_way_to_the_nearest() -> None:
    given = GivenDraws({"augmentation": 7.0, "mixing": "all"}, RandomSampler(seed=0), clip=True)
    drawn = draw(full, {}, PROBLEM, given)
    assert drawn.recipe.augmentation == 1.0
    assert set(given.refused) == {"augmentation", "mixing"}
    assert list(given.taken) == ["augmentation"]


class Together(RandomSampler):
    """Draws two parameters together, as relative samplers do."""

    def infer_relative_search_space(
        self, study: optuna.Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        return {"x": FloatDistribution(0, 1), "y": FloatDistribution(0, 1)}

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        return dict.fromkeys(search_space, 0.25)


def test_what_is_given_is_not_drawn_together_with_others() -> None:
    trial = optuna.create_study(sampler=GivenDraws({"x": 0.75}, Together(seed=0))).ask()
    assert trial.suggest_float("x", 0, 1) == 0.75
    assert trial.suggest_float("y", 0, 1) == 0.25
