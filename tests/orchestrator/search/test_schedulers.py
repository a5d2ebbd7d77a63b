"""Every scheduler keeps to one contract, whatever its name: numbers in, verdicts out."""

from math import inf, nan
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.search.config import SearchConfig
from orchestrator.search.strategies import SCHEDULERS, scheduler
from orchestrator.search.strategy import GO_ON, Decision, Scheduler
from orchestrator.store.ledger import TrialRecord, TrialState
from tests.orchestrator.fake_trials import measurement, record
from tests.orchestrator.search.standings import standing

ERRORS = st.lists(st.floats(0, 1) | st.sampled_from([nan, inf]), min_size=1, max_size=30)
EVERY_NAME = pytest.mark.parametrize("name", sorted(SCHEDULERS))


def named(name: str) -> Scheduler:
    return scheduler(SearchConfig(scheduler=name, min_peers=3, reduction_factor=2.0))


def paused_at(rungs: list[int], errors: list[float]) -> tuple[TrialRecord, ...]:
    """Trials paused at a rung each, where they measured an error each."""
    return tuple(
        record(
            number,
            state=TrialState.PAUSED,
            measurements=tuple(measurement(r, error) for r in range(rung + 1)),
        )
        for number, (rung, error) in enumerate(zip(rungs, errors, strict=True))
    )


@EVERY_NAME
@given(peers=ERRORS, rung=st.integers(0, 5))
def test_a_trial_that_has_spent_its_compute_is_left_alone(
    name: str, peers: list[float], rung: int
) -> None:
    assert named(name).judge(standing(peers[0], peers, rung=rung, over=True)) == GO_ON


@EVERY_NAME
@given(peers=ERRORS, order=st.randoms())
def test_the_order_of_arrival_does_not_matter(name: str, peers: list[float], order: Random) -> None:
    before = named(name).judge(standing(peers[0], peers))
    shuffled = list(peers)
    order.shuffle(shuffled)
    assert named(name).judge(standing(peers[0], shuffled)) == before


@EVERY_NAME
@given(peers=ERRORS)
def test_a_better_trial_never_leaves_where_a_worse_one_goes_on(
    name: str, peers: list[float]
) -> None:
    race = named(name)
    ordered = sorted(peers, key=lambda error: error if error == error else inf)
    on = [race.judge(standing(e, peers)).decision is Decision.CONTINUE for e in ordered]
    assert on == sorted(on, reverse=True)


@EVERY_NAME
def test_of_many_trials_the_best_goes_on(name: str) -> None:
    peers = [number / 40 for number in range(40)]
    assert named(name).judge(standing(0.0, peers)) == GO_ON


@EVERY_NAME
def test_a_trial_that_is_stopped_gets_a_reason(name: str) -> None:
    verdict = named(name).judge(standing(0.9, [0.9, 0.1, 0.1, 0.1, 0.1, 0.1]))
    assert (verdict.decision is Decision.STOP) is (verdict.reason is not None)


@EVERY_NAME
@given(data=st.data())
def test_only_a_paused_trial_is_resumed(name: str, data: st.DataObject) -> None:
    rungs = data.draw(st.lists(st.integers(0, 3), max_size=12))
    errors = [data.draw(st.floats(0, 1)) for _ in rungs]
    paused = paused_at(rungs, errors)
    at = {
        rung: {t.trial_id: e for t, r, e in zip(paused, rungs, errors, strict=True) if r >= rung}
        for rung in range(4)
    }
    resumed = named(name).resume(paused, lambda rung: at[rung])
    assert resumed is None or resumed in paused


@EVERY_NAME
def test_nobody_is_resumed_where_nobody_is_paused(name: str) -> None:
    assert named(name).resume((), lambda rung: {}) is None


@EVERY_NAME
def test_a_paused_trial_that_leads_its_rung_goes_on(name: str) -> None:
    paused = paused_at([0, 0], [0.3, 0.2])
    others = {f"t{number}": 0.9 for number in range(2, 12)}
    errors = {"t0": 0.3, "t1": 0.2, **others}
    scheduler, handed_out = named(name), []
    while (trial := scheduler.resume(paused, lambda rung: errors)) is not None:
        handed_out.append(trial.trial_id)
        paused = tuple(other for other in paused if other != trial)
    assert sorted(handed_out) == ["t0", "t1"]
