"""NSGA-II: generations told by the study alone, and children that have their parents' values."""

from pathlib import Path

import pytest
from optuna.trial import TrialState as StudyState
from optuna.trial import create_trial

from orchestrator.search.excerpt import LONGEST
from orchestrator.search.nsga2 import _generations, nsga2
from tests.orchestrator.search.asked_trials import FEW, run
from tests.orchestrator.search.histories import SPACE, history_of
from tests.orchestrator.search.learning_samplers import sampler_of

POPULATION = 10


def test_the_first_generation_is_random_and_the_next_has_its_parents_values(
    tmp_path: Path,
) -> None:
    ranges = {**FEW, "optimizer": "sgd"}  # only what every recipe has is handed down
    sampler = sampler_of(tmp_path / "study.jsonl", nsga2(population=POPULATION), ranges=ranges)
    records = run(sampler, [], 2 * POPULATION)
    rates = [record.recipe.learning_rate for record in records]
    parents, children = rates[:POPULATION], rates[POPULATION:]
    assert len(set(parents)) == POPULATION
    assert sum(rate in parents for rate in children) >= POPULATION / 2, "the others are mutations"


def test_a_long_history_hands_down_the_values_of_its_better_trials() -> None:
    history, newcomer = history_of(4 * LONGEST), create_trial(state=StudyState.RUNNING)
    inherited, shares = 0, []
    known = {trial.params["share"] for trial in history.get_trials()}
    for seed in range(40):
        draws = nsga2(population=POPULATION)(history, seed)
        share = draws.sample_independent(history, newcomer, "share", SPACE["share"])
        if share in known:
            inherited += 1
            shares.append(share)
    assert inherited >= 20, "the others are mutations"
    assert sum(abs(share - 0.5) for share in shares) / len(shares) < 0.1, "a random one: 0.25"


@pytest.mark.parametrize("trials", [0, 9, 10, 35, LONGEST, LONGEST + 1, 1000])
@pytest.mark.parametrize("population", [2, 10, 200])
def test_children_come_from_whole_generations_only(trials: int, population: int) -> None:
    """The last generation is the child's own, and no trial of it is a parent."""
    complete = [t for t in history_of(trials).get_trials() if t.state is StudyState.COMPLETE]
    *parents, own = _generations(complete, population=population)
    assert [trial.number for trial in own] == [
        trial.number for trial in complete[len(complete) // population * population :]
    ]
    assert all(len(generation) == population for generation in parents)
    assert sum(map(len, parents)) <= max(LONGEST, 2 * population)


def test_a_population_without_two_parents_is_refused() -> None:
    with pytest.raises(ValueError, match="population=1 must be at least 2"):
        nsga2(population=1)
