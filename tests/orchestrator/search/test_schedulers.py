"""Every scheduler keeps to one contract, whatever its name: numbers in, verdicts out."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from math import inf, nan
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.search.config import SearchConfig
from orchestrator.search.field import Field, Room
from orchestrator.search.strategies import SCHEDULERS, scheduler
from orchestrator.search.strategy import GO_ON, Decision, Scheduler
from orchestrator.store.ledger import TrialRecord, TrialState
from tests.orchestrator.fake_trials import LEVELS, measurement, record
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
            executed_flops=LEVELS[rung],
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


def field_of(trials: Iterable[TrialRecord]) -> Field:
    """The field of trials."""
    known = list(trials)

    def errors_at(rung: int) -> Mapping[str, float]:
        return {t.trial_id: m.val_error for t in known for m in t.measurements if m.rung == rung}

    return Field(LEVELS, errors_at, known)


def moves_of(name: str, field: Field, room: Room) -> Iterator[TrialRecord]:
    """The paused trials that go on before anything else is wanted."""
    race = named(name)
    while (move := race.next_move(field, room)) is not None and move.trial is not None:
        if move.trial.state is not TrialState.PAUSED:
            return
        yield move.trial
        field.update(replace(move.trial, state=TrialState.RUNNING))


@EVERY_NAME
@given(data=st.data())
def test_only_a_paused_trial_goes_on_and_each_once(name: str, data: st.DataObject) -> None:
    rungs = data.draw(st.lists(st.integers(0, 3), max_size=12))
    paused = paused_at(rungs, [data.draw(st.floats(0, 1)) for _ in rungs])
    on = list(moves_of(name, field_of(paused), Room()))
    assert {trial.trial_id for trial in on} <= {trial.trial_id for trial in paused}
    assert len({trial.trial_id for trial in on}) == len(on)


@EVERY_NAME
def test_a_recipe_is_new_where_nobody_is_paused(name: str) -> None:
    move = named(name).next_move(field_of(()), Room())
    assert move is not None
    assert move.trial is None


@EVERY_NAME
def test_a_paused_trial_that_leads_its_rung_goes_on(name: str) -> None:
    on = moves_of(name, field_of(paused_at([0] * 12, [0.3, 0.2] + [0.9] * 10)), Room())
    assert {"t0", "t1"} <= {trial.trial_id for trial in on}


@EVERY_NAME
def test_a_paused_trial_that_the_budget_cannot_hold_stays(name: str) -> None:
    paused = paused_at([0, 0], [0.3, 0.2])
    on = moves_of(name, field_of(paused), Room(flops=LEVELS[0]))
    assert list(on) == []
