"""The ledger is the fold of its journal, no more and no less."""

from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.store.beginnings import recorded_search, recorded_start
from orchestrator.store.ledger import (
    Ledger,
    TrialRecord,
    TrialState,
)
from tests.orchestrator.fake_trials import (
    LEVELS,
    Clock,
    MemoryJournal,
    ledger_of,
    record,
    reported,
)
from trainables.measurement import Outcome, Report

ERRORS = st.sampled_from([0.0, 0.1, 0.2, 0.3, 0.5, 0.9, 1.0])
TRIALS = st.integers(0, 4)
RUNGS = st.integers(0, len(LEVELS) - 1)

ACTIONS = st.one_of(
    st.tuples(st.just("open")),
    st.tuples(st.just("suggest")),
    st.tuples(st.just("restart"), TRIALS),
    st.tuples(st.sampled_from(["pause", "resume"]), TRIALS),
    st.tuples(st.just("measure"), TRIALS, RUNGS, ERRORS, st.floats(1e6, 1e12)),
    st.tuples(
        st.just("finish"),
        TRIALS,
        st.sampled_from([state for state in TrialState if state.finished]),
        st.sampled_from([0.0, 3e8]),
    ),
    st.tuples(st.just("test"), TRIALS, RUNGS, ERRORS),
)


def act(ledger: Ledger, action: tuple[Any, ...]) -> None:
    """Takes the action if the ledger's trials allow it."""
    name, *values = action
    trials = ledger.trials()
    if name == "open":
        ledger.open(sweep_id="sweep")
    elif name == "suggest":
        ledger.suggested(record(len(trials), params={"pruning_ratio": 0.5}))
    elif values[0] < len(trials):
        trial_id = trials[values[0]].trial_id
        match name:
            case "restart":
                ledger.restarted(trial_id, reason="node lost")
            case "pause":
                ledger.paused(trial_id)
            case "resume":
                ledger.resumed(trial_id)
            case "measure":
                ledger.measured(trial_id, reported(*values[1:3], train_flops=values[3]))
            case "finish":
                ledger.finished(trial_id, values[1], reason="so", unmeasured_flops=values[2])
            case "test":
                ledger.tested(trial_id, values[1], test_error=values[2])


def state(ledger: Ledger) -> dict[str, Any]:
    """All that a reader can see."""
    return {
        "sweep_id": ledger.sweep_id,
        "revision": ledger.revision,
        "trials": ledger.trials(),
        "readings": ledger.readings(),
        "errors": [dict(ledger.errors_at(rung)) for rung in range(len(LEVELS))],
        "ranked": [list(ledger.ranked_errors(rung)) for rung in range(len(LEVELS))],
        "ranked_before": [list(ledger.ranked_errors_before(r)) for r in range(len(LEVELS))],
        "heard_of": ledger.heard_of,
        "frontier": ledger.frontier,
        "sweep_flops": ledger.sweep_flops,
        "elapsed_seconds": ledger.elapsed_seconds,
    }


@settings(max_examples=150, deadline=None)
@given(actions=st.lists(ACTIONS, max_size=40))
def test_replaying_the_journal_gives_the_state_it_was_written_from(actions: list[Any]) -> None:
    clock = Clock()
    journal = MemoryJournal()
    ledger = Ledger(journal, clock=clock)
    for action in actions:
        clock.now += 1.5
        act(ledger, action)
    assert state(Ledger(journal)) == state(ledger)


@settings(max_examples=150, deadline=None)
@given(actions=st.lists(ACTIONS, max_size=40))
def test_the_frontier_is_that_of_all_measurements(actions: list[Any]) -> None:
    ledger = Ledger(MemoryJournal(), clock=Clock())
    for action in actions:
        act(ledger, action)
    every = [(m.train_flops, m.val_error) for _, m, _ in ledger.readings()]
    best = {
        one
        for one in every
        if not any(o != one and o[0] <= one[0] and o[1] <= one[1] for o in every)
    }
    assert {(p.train_flops, p.val_error) for p in ledger.frontier.points} == best


@settings(max_examples=100, deadline=None)
@given(actions=st.lists(ACTIONS, max_size=40))
def test_the_sweeps_compute_is_the_sum_of_its_trials(actions: list[Any]) -> None:
    ledger = Ledger(MemoryJournal(), clock=Clock())
    for action in actions:
        act(ledger, action)
    assert ledger.sweep_flops == pytest.approx(sum(t.executed_flops for t in ledger.trials()))
    readings = sorted(reading.sweep_flops for _, _, reading in ledger.readings())
    assert all(flops <= ledger.sweep_flops * (1 + 1e-12) for flops in readings)


@settings(max_examples=100, deadline=None)
@given(actions=st.lists(ACTIONS, max_size=40))
def test_trials_are_counted_and_found_by_their_state(actions: list[Any]) -> None:
    ledger = Ledger(MemoryJournal(), clock=Clock())
    for action in actions:
        act(ledger, action)
    trials = ledger.trials()
    assert len(ledger) == len(trials)
    assert ledger.states() == Counter(trial.state for trial in trials)
    assert ledger.unfinished() == tuple(trial for trial in trials if not trial.finished)


def test_trials_are_found_in_the_order_in_which_they_finished() -> None:
    journal = MemoryJournal()
    ledger = ledger_of({0: [0.5], 1: [0.4], 2: [0.3], 3: []}, finished=[2, 0], journal=journal)
    ledger.finished("t3", TrialState.INFEASIBLE)
    for one in (ledger, Ledger(journal)):
        assert [t.trial_id for t in one.finished_since(0)] == ["t2", "t0", "t3"]
        assert [t.trial_id for t in one.finished_since(2)] == ["t3"]
        assert one.finished_since(3) == ()


def test_compute_after_the_last_measurement_is_paid_for_too() -> None:
    ledger = ledger_of({0: [0.5], 1: [0.4, 0.3]})
    ledger.finished("t0", TrialState.DIVERGED, reason="loss", unmeasured_flops=5e8)
    assert ledger.trial("t0").executed_flops == 1.5e9
    assert ledger.sweep_flops == 1.5e9 + 2e9


def test_a_measurement_reported_again_changes_nothing() -> None:
    journal = MemoryJournal()
    ledger = ledger_of({0: [0.5, 0.4]}, journal=journal)
    before = state(ledger), list(journal.kept)
    ledger.measured("t0", reported(0, 0.1, executed_flops=7e9))
    assert (state(ledger), journal.kept) == before


def test_a_reading_tells_the_attempt_and_the_sweeps_compute_at_its_time() -> None:
    ledger = ledger_of({0: [0.5], 1: []})
    ledger.restarted("t1", reason="node lost")
    ledger.measured("t1", reported(0, 0.3))
    (_, _, first), (_, _, second) = ledger.readings()
    assert (first.attempt, first.sweep_flops) == (0, 1e9)
    assert (second.attempt, second.sweep_flops) == (1, 2e9)


def test_a_curve_is_in_order_of_its_rungs() -> None:
    ledger = ledger_of({0: []})
    for rung in (2, 0, 1):
        ledger.measured("t0", reported(rung, 0.5))
    assert [m.rung for m in ledger.trial("t0").measurements] == [0, 1, 2]


def test_a_test_error_reaches_the_curve_and_the_frontier_and_selects_nothing() -> None:
    ledger = ledger_of({0: [0.5, 0.4]})
    before = ledger.frontier
    ledger.tested("t0", 1, test_error=0.45)
    assert [m.test_error for m in ledger.trial("t0").measurements] == [None, 0.45]
    assert [p.test_error for p in ledger.frontier.points] == [None, 0.45]
    forgotten = [
        replace(p, measurement=replace(p.measurement, test_error=None))
        for p in ledger.frontier.points
    ]
    assert forgotten == list(before.points)


def test_wall_time_adds_up_over_drivers_and_leaves_out_the_time_between() -> None:
    clock, journal = Clock(), MemoryJournal()
    ledger = Ledger(journal, clock=clock)
    ledger.open(sweep_id="sweep")
    clock.now += 10
    ledger.suggested(record(0))
    assert ledger.elapsed_seconds == 10
    clock.now += 1000  # nobody ran
    ledger = Ledger(journal, clock=clock)
    ledger.open(sweep_id="sweep")
    assert ledger.elapsed_seconds == 10
    clock.now += 5
    ledger.measured("t0", reported(0))
    assert ledger.elapsed_seconds == 15
    assert Ledger(journal).elapsed_seconds == 15


def test_the_revision_grows_with_every_event() -> None:
    ledger = ledger_of({0: [0.5]})
    before = ledger.revision
    ledger.tested("t0", 0, test_error=0.5)
    assert ledger.revision == before + 1


def test_a_change_that_cannot_be_written_down_does_not_happen() -> None:
    class Full(MemoryJournal):
        def append(self, event: Any) -> None:
            raise OSError(28, "No space left on device")

    ledger = Ledger(Full(), clock=Clock())
    with pytest.raises(OSError, match="No space"):
        ledger.suggested(record(0))
    assert ledger.trials() == ()
    assert ledger.revision == 0


def test_a_finished_trial_says_how_and_why() -> None:
    ledger = ledger_of({0: [0.5]})
    assert not ledger.trial("t0").finished
    ledger.finished("t0", TrialState.HALVED, reason="others were better")
    trial = ledger.trial("t0")
    assert trial.finished
    assert (trial.state, trial.reason) == (TrialState.HALVED, "others were better")
    assert trial.finished_at is not None


def test_a_paused_trial_is_neither_finished_nor_a_new_attempt() -> None:
    journal = MemoryJournal()
    ledger = ledger_of({0: [0.5]}, journal=journal)
    ledger.paused("t0")
    paused = ledger.trial("t0")
    assert (paused.state, paused.finished, paused.reason) == (TrialState.PAUSED, False, None)
    ledger.resumed("t0")
    resumed = ledger.trial("t0")
    assert (resumed.state, resumed.attempt) == (TrialState.RUNNING, 0)
    assert Ledger(journal).trial("t0") == resumed


def test_a_report_without_a_measurement_is_no_rung() -> None:
    with pytest.raises(ValueError, match="Trial t0 reports no measurement"):
        ledger_of({0: []}).measured("t0", Report(outcome=Outcome.INFEASIBLE))


def test_the_start_is_kept_with_which_of_its_recipes_a_trial_tries() -> None:
    journal = MemoryJournal()
    ledger = ledger_of({}, journal=journal)
    assert ledger.start is None
    assert recorded_start(journal) is None
    recipes = [{"values": {"method": "full", "learning_rate": 0.01}, "origin": "space.start.0"}]
    ledger.started_with(recipes)
    ledger.suggested(record(0, start=0))
    ledger.suggested(record(1))
    for one in (ledger, Ledger(journal)):
        assert list(one.start or ()) == recipes
        assert [trial.start for trial in one.trials()] == [0, None]
    assert list(recorded_start(journal) or ()) == recipes


def opened(*trials: tuple[TrialRecord, float], images: int | None = 300) -> Ledger:
    """A ledger of trials that measured an error at the lowest rung."""
    ledger = Ledger(MemoryJournal(), clock=Clock())
    ledger.open(sweep_id="sweep", validation_images=images)
    for trial, error in trials:
        ledger.suggested(trial)
        ledger.measured(trial.trial_id, reported(0, error))
    return ledger


def test_the_frontier_tells_what_is_expected_of_its_points() -> None:
    ledger = opened(*((record(number), 0.4 + number / 100) for number in range(20)))
    (point,) = ledger.frontier.points
    assert point.val_error == 0.4
    assert point.expected_error is not None
    assert 0.41 < point.expected_error < 0.43
    assert ledger.expected(ledger.trial("t0"), point.measurement) == (point.expected_error, None)


def test_a_lucky_point_is_expected_to_be_no_better_than_a_cheaper_one() -> None:
    ledger = opened((record(0), 0.4))
    ledger.measured("t0", reported(1, 0.39))
    for number in range(1, 40):
        ledger.suggested(record(number))
        ledger.measured(f"t{number}", reported(1, 0.42 + number / 3000))
    cheap, lucky = ledger.frontier.points
    assert (cheap.val_error, lucky.val_error) == (0.4, 0.39)
    assert cheap.error == lucky.error, "0.03 ahead of 39 is luck"
    assert [p.measurement for p in ledger.measured_frontier.points] == [
        p.measurement for p in ledger.frontier.points
    ]
    for number in range(1, 40):
        ledger.measured(f"t{number}", reported(0, 0.44 + number / 3000))
    cheap, lucky = ledger.frontier.points
    assert cheap.error > lucky.error, "and so is the cheaper one's lead"


def test_a_confirmed_recipe_is_expected_to_be_between_its_runs() -> None:
    first = record(0)
    others = [(record(number), 0.3 + number / 50) for number in range(1, 30)]
    ledger = opened((first, 0.2), *others)
    before = ledger.frontier.points[0]
    again = replace(first, trial_id="again", number=30, seed=99, confirms=first.trial_id)
    ledger.suggested(again)
    ledger.measured("again", reported(0, 0.3))
    after = ledger.frontier.points[0]
    assert (before.confirming_error, after.confirming_error) == (None, 0.3)
    assert before.error + 0.005 < after.error < 0.22
    assert ledger.frontier.confirmed == 1
    assert ledger.trial("again").confirms == "t0"


def test_a_journal_from_before_there_was_confirmation_is_read() -> None:
    ledger = opened(*((record(number), 0.4 + number / 100) for number in range(20)))
    journal = MemoryJournal()
    for event in ledger._journal.events():
        journal.append(
            {k: v for k, v in event.items() if k not in ("validation_images", "confirms")}
        )
    older = Ledger(journal, clock=Clock())
    assert [replace(point, expected_error=None) for point in ledger.frontier.points] == list(
        older.frontier.points
    )
    assert older.trials() == ledger.trials()
    older.open(sweep_id="sweep", validation_images=300)
    assert older.frontier == ledger.frontier, "once it is opened again it is known"


def test_a_sweep_from_before_there_was_a_start_had_none() -> None:
    journal = MemoryJournal()
    ledger_of({0: [0.5]}, journal=journal)
    for event in journal.kept:
        event.pop("start", None)
    assert recorded_start(journal) == ()
    assert Ledger(journal).trial("t0").start is None


def test_the_newest_drivers_search_is_kept() -> None:
    journal = MemoryJournal()
    ledger = ledger_of({}, journal=journal)
    ledger.open(sweep_id="sweep", search={"sampler": "tpe", "scheduler": "race"})
    assert recorded_search(journal) is None  # nothing was drawn by it
    ledger.suggested(record(0))
    ledger.open(sweep_id="sweep", search={"sampler": "gp", "scheduler": "race"})
    assert recorded_search(journal) == {"sampler": "gp", "scheduler": "race"}


def test_an_older_sweep_has_no_search_to_tell() -> None:
    journal = MemoryJournal()
    ledger_of({0: [0.5]}, journal=journal)
    assert recorded_search(journal) == {}


def test_errors_are_ranked_as_they_are_now_and_as_they_were_before_what_runs_began() -> None:
    ledger = ledger_of({0: [0.5], 1: [0.9], 2: [0.1]}, finished=[0, 1])
    assert ledger.ranked_errors(0) == [0.1, 0.5, 0.9]
    assert ledger.ranked_errors_before(0) == []
    ledger.paused("t2")
    ledger.suggested(record(3))
    assert not ledger.heard_of
    ledger.measured("t3", reported(0, 0.2))
    assert ledger.heard_of
    assert ledger.ranked_errors(0) == [0.1, 0.2, 0.5, 0.9]
    assert ledger.ranked_errors_before(0) == [0.1, 0.5, 0.9]
    ledger.finished("t3", TrialState.COMPLETE)
    ledger.resumed("t2")
    assert ledger.ranked_errors_before(0) == [0.1, 0.2, 0.5, 0.9]
    assert ledger.trial("t2").resumed_at == 0


def test_a_journal_with_an_event_for_each_resumed_trial_is_read() -> None:
    journal = MemoryJournal()
    ledger = ledger_of({0: [0.5]}, journal=journal)
    ledger.paused("t0")
    journal.append({"event": "resumed", "trial_id": "t0", "time": 1e9})
    assert Ledger(journal).trial("t0").state is TrialState.RUNNING
