"""Confirmation: which point is run again, and what is kept back of the budget for it."""

from dataclasses import replace
from typing import Any

import pytest

from orchestrator.search.config import Budget
from orchestrator.search.confirmation import Confirmation, judge
from orchestrator.search.field import Field, Room
from orchestrator.search.strategy import GO_ON, Decision, Move
from orchestrator.store.ledger import TrialRecord, TrialState
from tests.orchestrator.fake_trials import LEVELS, ledger_of, measurement, record, reported

ENOUGH = Room(flops=1e12, trials=1000)
HUNDRED = Confirmation(0.05, Budget(sweep_flops=1e11, trials=100))
"""It may spend 5e9 FLOPs and 5 trials."""


def trial(number: int, *errors: float, **values: Any) -> TrialRecord:
    """A trial that ended after a curve with these errors."""
    curve = tuple(
        measurement(rung, error, train_flops=LEVELS[rung]) for rung, error in enumerate(errors)
    )
    spent = LEVELS[len(errors) - 1] if errors else 0.0
    known: dict[str, Any] = {
        "state": TrialState.HALVED,
        "measurements": curve,
        "executed_flops": spent,
    }
    return record(number, **known | values)


def field_of(*trials: TrialRecord) -> Field:
    return Field(LEVELS, lambda rung: {}, trials)


def wanted(
    *trials: TrialRecord, room: Room = ENOUGH, confirmation: Confirmation = HUNDRED
) -> Move | None:
    """What is confirmed next where the frontier is that of all the trials."""
    curves = {t.number: [m.val_error for m in t.measurements] for t in trials}
    return confirmation.next_move(ledger_of(curves).frontier, field_of(*trials), room)


def test_the_cheapest_recipe_of_the_frontier_is_run_again() -> None:
    long, short, beaten = trial(0, 0.5, 0.4, 0.3), trial(1, 0.45), trial(2, 0.6)
    assert wanted(long, short, beaten) == Move(trial=short, again=True)


def test_a_trial_is_confirmed_once_whatever_came_of_it() -> None:
    long, short = trial(0, 0.5, 0.4), trial(1, 0.45)
    failed = trial(2, state=TrialState.FAILED, confirms=short.trial_id)
    assert wanted(long, short, failed) == Move(trial=long, again=True)
    diverged = trial(3, state=TrialState.DIVERGED, confirms=long.trial_id)
    assert wanted(long, short, failed, diverged) is None


def test_a_confirming_trial_is_not_confirmed_itself() -> None:
    short = trial(0, 0.45)
    assert wanted(short, trial(1, 0.4, confirms=short.trial_id)) is None


@pytest.mark.parametrize(
    "state",
    [TrialState.RUNNING, TrialState.PAUSED, TrialState.DIVERGED, TrialState.FAILED],
)
def test_a_trial_that_goes_on_or_came_to_grief_is_not_confirmed(state: TrialState) -> None:
    assert wanted(trial(0, 0.5, state=state)) is None


def test_what_is_too_dear_is_not_confirmed() -> None:
    assert wanted(trial(0, 0.9, 0.8, 0.4)) is not None, "4e9 are within the share"
    assert wanted(trial(0, 0.9, 0.8, 0.4, 0.3)) is None, "8e9 are not"
    assert wanted(trial(0, 0.5), room=Room(flops=LEVELS[0] / 2)) is None
    assert wanted(trial(0, 0.5), room=Room(trials=0)) is None


def test_what_was_confirmed_counts_towards_the_share() -> None:
    first, second = trial(0, 0.5), trial(1, 0.6, 0.4)
    again = trial(2, 0.5, confirms=first.trial_id)
    running = record(3, confirms=second.trial_id)
    field = field_of(first, second, again, running)
    assert HUNDRED.left(field) == Room(flops=5e9 - LEVELS[0] - LEVELS[1], trials=3)
    spared = HUNDRED.spared(ENOUGH, field, time_left=1.0)
    assert spared == Room(flops=1e12 - 2e9, trials=997)


def test_without_a_share_nothing_is_confirmed_and_nothing_kept_back() -> None:
    never = Confirmation(0.0, Budget(wall_time=60))
    assert wanted(trial(0, 0.5), confirmation=never) is None
    assert never.spared(ENOUGH, field_of(), time_left=0.01) == ENOUGH


def test_the_last_of_the_time_confirms_and_begins_nothing_else() -> None:
    timed = Confirmation(0.05, Budget(wall_time=60))
    assert timed.spared(ENOUGH, field_of(), time_left=0.06) == ENOUGH
    assert not timed.spared(ENOUGH, field_of(), time_left=0.05).holds(0.0)
    assert wanted(trial(0, 0.5), confirmation=timed) is not None


@pytest.mark.parametrize("share", [-0.1, 0.6])
def test_a_share_that_makes_no_sense_is_refused(share: float) -> None:
    with pytest.raises(ValueError, match="must lie in"):
        Confirmation(share, Budget(trials=1))


def test_a_confirming_trial_ends_where_the_confirmed_one_did() -> None:
    confirmed = trial(7, 0.5, 0.4)
    first, second = (reported(rung).measurement for rung in range(2))
    assert first is not None
    assert second is not None
    assert judge(first, confirmed, over=False) == GO_ON
    assert judge(second, confirmed, over=True) == GO_ON, "it is complete"
    verdict = judge(second, confirmed, over=False)
    assert (verdict.decision, verdict.state) == (Decision.STOP, TrialState.HALVED)
    assert verdict.reason == "trial 7, which it confirms, went no further"


def test_a_race_does_not_see_confirming_trials() -> None:
    first = trial(0, 0.5, state=TrialState.COMPLETE)
    again = replace(first, trial_id="again", number=1, confirms=first.trial_id)
    field, without = field_of(first, again), field_of(first)
    assert len(field) == 2, "its number is taken"
    for rung in range(len(LEVELS)):
        assert field.ready(rung) == without.ready(rung)
        assert field.ended(rung) == without.ended(rung)
        assert field.cost(rung) == without.cost(rung)
        assert field.methods(rung) == without.methods(rung)
    assert field_of(first, replace(again, state=TrialState.RUNNING)).running == []
