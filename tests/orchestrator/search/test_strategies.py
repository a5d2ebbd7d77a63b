"""Strategies are found by name, and a name that is not known is refused with the mend."""

import pytest

from orchestrator.search.config import AUTO, SearchConfig
from orchestrator.search.no_race import NoRace
from orchestrator.search.race import Race
from orchestrator.search.strategies import SAMPLERS, SCHEDULERS, sampler_draws, scheduler
from orchestrator.search.strategy import Decision, Verdict
from orchestrator.store.ledger import TrialState
from trainables.errors import InputError


def test_auto_is_the_default_and_stands_for_known_names() -> None:
    search = SearchConfig()
    assert search.names == {"sampler": AUTO, "scheduler": AUTO}
    assert search.resolved().sampler in SAMPLERS
    assert search.resolved().scheduler in SCHEDULERS
    assert isinstance(scheduler(search), Race)


def test_a_name_that_is_not_known_is_refused() -> None:
    with pytest.raises(InputError, match=r"search\.sampler='tpee' is not known; did you mean tpe"):
        sampler_draws(SearchConfig(sampler="tpee"))
    with pytest.raises(InputError, match=r"search\.scheduler='q' is not known; choose one of auto"):
        scheduler(SearchConfig(scheduler="q", reduction_factor=None))


def test_without_a_reduction_factor_nobody_races() -> None:
    for name in (AUTO, *SCHEDULERS):
        assert isinstance(scheduler(SearchConfig(scheduler=name, reduction_factor=None)), NoRace)


@pytest.mark.parametrize(
    ("decision", "state"),
    [
        (Decision.STOP, None),
        (Decision.CONTINUE, TrialState.HALVED),
        (Decision.PAUSE, TrialState.PAUSED),
        (Decision.STOP, TrialState.RUNNING),
    ],
)
def test_a_verdict_has_the_state_in_which_a_trial_ends_and_no_other(
    decision: Decision, state: TrialState | None
) -> None:
    with pytest.raises(ValueError, match="needs the state it ends in"):
        Verdict(decision=decision, state=state)
