"""The search that a config gets which says nothing of it: whatever its space, budget and order."""

from pathlib import Path
from typing import Any

import pytest

from orchestrator.search.config import Budget
from orchestrator.store.ledger import TrialState
from search_spaces.problem import Problem
from search_spaces.recipe import Recipe
from search_spaces.space import Trial
from tests.orchestrator.search.asked_trials import RUNGS
from tests.orchestrator.search.rehearsals import rehearsal


def any_recipe(trial: Trial, *, target_flops: float) -> Recipe:
    """A recipe of which only the rate is searched."""
    return Recipe(
        method="full",
        settings={},
        learning_rate=trial.suggest_float("learning_rate", 1e-4, 1.0, log=True),
        weight_decay=1e-4,
        batch_size=32,
        label_smoothing=0.0,
        layer_decay=1.0,
        trainable_depth=1.0,
        resolution=32,
        augmentation=0.0,
        target_flops=target_flops,
    )


def between_rungs(trial: Trial, problem: Problem) -> Recipe:
    """A user's space that has one aim, which is no rung."""
    return any_recipe(trial, target_flops=1.5 * RUNGS[2])


@pytest.mark.parametrize("generation", [None, 4])
def test_recipes_begin_low_and_climb_and_the_model_draws(
    tmp_path: Path, generation: int | None
) -> None:
    swept = rehearsal(tmp_path, budget=Budget(sweep_flops=2e11), generation=generation)
    outlook = swept.run()
    assert outlook.whole
    assert [bool(rung.trials) for rung in outlook.rungs] == [True] * len(RUNGS)
    assert all(rung.raised >= rung.begun for rung in outlook.rungs[1:])
    assert 0.7 * 2e11 < swept.ledger.sweep_flops <= 2e11


@pytest.mark.parametrize("generation", [None, 4])
@pytest.mark.parametrize("rung", [0, 3, 5])
def test_a_space_may_fix_the_aim(tmp_path: Path, rung: int, generation: int | None) -> None:
    ranges = {"target_rung": rung}
    swept = rehearsal(tmp_path, budget=Budget(trials=12), ranges=ranges, generation=generation)
    outlook = swept.run()
    trials = swept.ledger.trials()
    assert {trial.recipe.target_flops for trial in trials} == {RUNGS[rung]}
    assert [r.trials for r in outlook.rungs] == [12 if n == rung else 0 for n in range(len(RUNGS))]
    assert any(trial.state is TrialState.COMPLETE for trial in trials)
    ends = {trial.measurements[-1].rung for trial in trials if trial.state is TrialState.COMPLETE}
    assert ends == {rung}


def test_a_space_may_have_an_aim_of_its_own_that_is_no_rung(tmp_path: Path) -> None:
    swept = rehearsal(tmp_path, budget=Budget(trials=12), space=between_rungs)
    swept.run()
    trials = swept.ledger.trials()
    assert len(trials) == 12
    assert {trial.recipe.target_flops for trial in trials} == {1.5 * RUNGS[2]}


@pytest.mark.parametrize(
    "budget", [{"trials": 30}, {"wall_time": 100.0}, {"trials": 30, "sweep_flops": 1e11}]
)
def test_it_keeps_any_budget(tmp_path: Path, budget: dict[str, Any]) -> None:
    swept = rehearsal(tmp_path, budget=Budget(**budget))
    outlook = swept.run()
    assert outlook.whole
    assert 0 < len(swept.ledger) <= budget.get("trials", 1000)
    assert swept.ledger.sweep_flops <= budget.get("sweep_flops", 1e15)
    last = RUNGS[-1] / 1e9  # seconds of the longest way to the next rung
    assert outlook.wall_seconds <= budget.get("wall_time", 1e15) + last


def test_without_a_reduction_factor_trials_go_on_where_they_aim_at_once(tmp_path: Path) -> None:
    swept = rehearsal(tmp_path, budget=Budget(trials=20), reduction_factor=None)
    outlook = swept.run()
    assert sum(rung.begun for rung in outlook.rungs) == 20
    assert all(trial.state is TrialState.COMPLETE for trial in swept.ledger.trials())
