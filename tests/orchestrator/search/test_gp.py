"""Gaussian processes: what they learn, and what they leave to chance."""

from typing import Any

import optuna
import pytest
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
from optuna.samplers import RandomSampler
from optuna.trial import TrialState as StudyState
from optuna.trial import create_trial

from orchestrator.search.gp import LONGEST, gp
from orchestrator.search.history_draws import HistoryDraws
from tests.orchestrator.search.histories import SPACE, history_of

NEWCOMER = create_trial(state=StudyState.RUNNING)


def drawn(
    history: optuna.Study,
    name: str,
    distribution: BaseDistribution | None = None,
    *,
    seed: int = 0,
    startup_trials: int = 10,
) -> Any:
    draws = gp(startup_trials=startup_trials)(history, seed)
    return draws.sample_independent(history, NEWCOMER, name, distribution or SPACE[name])


def at_random(name: str, distribution: BaseDistribution, *, seed: int = 0) -> Any:
    sampler = RandomSampler(seed=seed)
    return sampler.sample_independent(history_of(0), NEWCOMER, name, distribution)


@pytest.mark.parametrize("infeasible", [False, True])
def test_values_are_drawn_near_the_better_trials(*, infeasible: bool) -> None:
    history = history_of(60, infeasible=infeasible)
    shares = [drawn(history, "share", seed=seed) for seed in range(2)]
    assert sum(abs(share - 0.5) for share in shares) / len(shares) < 0.12, "a random one: 0.25"


def test_the_seed_decides() -> None:
    history = history_of(30)
    assert drawn(history, "share", seed=3) == drawn(history, "share", seed=3)
    assert drawn(history, "share", seed=3) != drawn(history, "share", seed=4)


def test_a_long_history_is_seen_in_an_excerpt() -> None:
    history = history_of(5 * LONGEST, infeasible=True)
    draws = gp(startup_trials=3 * LONGEST)(history, 0)
    assert isinstance(draws, HistoryDraws)
    assert len(draws.history.get_trials(deepcopy=False)) == LONGEST
    assert draws.sample_independent(history, NEWCOMER, "share", SPACE["share"]) != at_random(
        "share", SPACE["share"]
    )


@pytest.mark.parametrize("trials", [0, 8])
def test_a_short_history_is_drawn_from_at_random(trials: int) -> None:
    assert drawn(history_of(trials), "rate") == at_random("rate", SPACE["rate"])


def test_a_parameter_that_not_all_trials_have_is_drawn_at_random() -> None:
    distribution = FloatDistribution(2.0, 3.0)
    assert drawn(history_of(30), "momentum", distribution) == at_random("momentum", distribution)


@pytest.mark.parametrize(
    ("name", "distribution"),
    [("kind", CategoricalDistribution(("d", "e"))), ("share", FloatDistribution(5.0, 6.0))],
)
def test_a_value_that_is_offered_no_longer_is_replaced(
    name: str, distribution: BaseDistribution
) -> None:
    value = drawn(history_of(30), name, distribution)
    assert distribution._contains(distribution.to_internal_repr(value))


def test_nothing_but_running_trials_is_no_trouble() -> None:
    history = history_of(30)
    for _ in range(20 * LONGEST):
        history.add_trial(
            create_trial(
                state=StudyState.RUNNING,
                params={"rate": 0.1, "share": 0.9, "kind": "a"},
                distributions=SPACE,
            )
        )
    assert 0 <= drawn(history, "share") <= 1


def test_fewer_than_two_startup_trials_are_refused() -> None:
    with pytest.raises(ValueError, match="startup_trials=1 must be at least 2"):
        gp(startup_trials=1)
