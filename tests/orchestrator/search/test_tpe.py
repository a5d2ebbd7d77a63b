"""TPE: what it learns, and from whom."""

from dataclasses import replace
from pathlib import Path

import pytest
from optuna.samplers import RandomSampler, TPESampler
from optuna.trial import TrialState as StudyState
from optuna.trial import create_trial

from orchestrator.search.tpe import LONGEST, tpe
from orchestrator.store.ledger import TrialState
from tests.orchestrator.search.asked_trials import (
    complete,
    error_of,
    running,
)
from tests.orchestrator.search.histories import SPACE, history_of
from tests.orchestrator.search.learning_samplers import sampler_of


def test_what_cannot_be_realised_is_avoided(tmp_path: Path) -> None:
    sampler = sampler_of(tmp_path / "study.jsonl", tpe(startup_trials=10))
    chosen = []
    for number in range(60):
        record = running(sampler.ask(number))
        chosen.append(record.recipe.settings.get("width_rule"))
        if chosen[-1] == "all":
            sampler.tell(replace(record, state=TrialState.INFEASIBLE, reason="layer conv1"))
        else:
            sampler.tell(complete(record, error_of(record.recipe)))
    assert chosen[:10].count("all") >= 3, "half of the random draws"
    assert chosen[30:].count("all") <= 8, "of thirty"


@pytest.mark.parametrize("trials", [5, 40, LONGEST])
def test_a_history_that_is_seen_whole_is_drawn_from_as_optuna_does(trials: int) -> None:
    history = history_of(trials, infeasible=True)
    own = tpe(startup_trials=10)(history, 7)
    optunas = TPESampler(n_startup_trials=10, multivariate=False, seed=7)
    newcomer = create_trial(state=StudyState.RUNNING)
    for name, distribution in SPACE.items():
        drawn = own.sample_independent(history, newcomer, name, distribution)
        assert drawn == optunas.sample_independent(history, newcomer, name, distribution)


def test_a_long_history_is_learnt_from_however_many_trials_start_it() -> None:
    history = history_of(4 * LONGEST)
    newcomer = create_trial(state=StudyState.RUNNING)
    shares = [
        draws.sample_independent(history, newcomer, "share", SPACE["share"])
        for draws in (tpe(startup_trials=2 * LONGEST)(history, seed) for seed in range(20))
    ]
    assert sum(abs(share - 0.5) for share in shares) / len(shares) < 0.1, "a random one: 0.25"


def test_a_short_history_is_drawn_from_at_random() -> None:
    history, newcomer = history_of(20), create_trial(state=StudyState.RUNNING)
    drawn = tpe(startup_trials=50)(history, 3).sample_independent(
        history, newcomer, "share", SPACE["share"]
    )
    random = RandomSampler(seed=3)
    assert drawn == random.sample_independent(history, newcomer, "share", SPACE["share"])


def test_no_startup_trials_are_refused() -> None:
    with pytest.raises(ValueError, match="startup_trials=0 must be at least 1"):
        tpe(startup_trials=0)
