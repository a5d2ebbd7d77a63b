"""The race: where recipes begin, who is raised, and what is kept of the budget for the end."""

from dataclasses import replace
from itertools import pairwise

from orchestrator.search.field import Field, Room
from orchestrator.search.race import FINISH_SHARE, KEPT, WAITING, Race
from orchestrator.search.strategy import GO_ON, Decision, Move
from orchestrator.store.ledger import TrialRecord, TrialState
from tests.orchestrator.fake_trials import LEVELS, measurement, recipe, record
from tests.orchestrator.search.standings import standing

ENOUGH = Room(flops=1e12, trials=1000)


def ended(number: int, rung: int, error: float, *, method: str = "filter_pruning") -> TrialRecord:
    """A trial that has spent the compute of a rung, and keeps half of its steps."""
    measured = replace(measurement(rung, error, train_flops=LEVELS[rung]), rung=rung)
    return record(
        number,
        recipe=replace(recipe(number, target_flops=LEVELS[rung]), method=method),
        state=TrialState.COMPLETE,
        measurements=(replace(measured, trunk_flops=LEVELS[rung] / 2),),
        executed_flops=LEVELS[rung],
    )


def over(trial: TrialRecord, *, continues: str) -> TrialRecord:
    """The trial as one that goes no further."""
    return replace(trial, state=TrialState.HALVED, continues=continues)


def field_of(*trials: TrialRecord) -> Field:
    return Field(LEVELS, lambda rung: {}, trials)


def wanted(*trials: TrialRecord, room: Room = ENOUGH) -> Move | None:
    return Race().next_move(field_of(*trials), room)


def test_recipes_begin_at_the_lowest_rung() -> None:
    assert wanted() == Move(target_flops=LEVELS[0])


def test_recipes_begin_where_the_space_lets_them() -> None:
    assert Race(lowest=2).next_move(field_of(), ENOUGH) == Move(target_flops=LEVELS[2])


def test_the_best_is_raised_once_its_rung_has_paid_for_the_next() -> None:
    first, second = ended(0, 0, 0.5), ended(1, 0, 0.4)
    assert wanted(first) == Move(target_flops=LEVELS[0]), "one at 1e9 does not pay for 1.5e9 more"
    assert wanted(first, second) == Move(trial=second, target_flops=LEVELS[1])


def test_nobody_is_raised_twice() -> None:
    first, second = ended(0, 0, 0.5), ended(1, 0, 0.4)
    raised = replace(ended(2, 1, 0.3), continues=second.trial_id)
    assert [place[-1] for place in field_of(first, second, raised).ready(0)] == ["t0"]


def test_every_rung_costs_no_more_than_one_below_it() -> None:
    trials: list[TrialRecord] = []
    for number in range(60):
        move = wanted(*trials)
        assert move is not None
        rung = LEVELS.index(move.target_flops or 0.0)
        error = move.trial.measurements[-1].val_error * 0.9 if move.trial else 0.5 + number / 200
        continues = move.trial.trial_id if move.trial else None
        trials.append(replace(ended(number, rung, error), continues=continues))
    costs = [field_of(*trials).cost(rung) for rung in range(len(LEVELS))]
    assert all(high <= low for low, high in pairwise(costs))
    assert costs[-1] > 0.5 * costs[0], "nor much less"


def test_a_method_without_a_place_gets_one_of_its_own() -> None:
    others = [ended(n, 0, 0.1 + n / 100) for n in range(12)]
    above = [over(ended(20 + n, 1, 0.1), continues=f"t{n}") for n in range(3)]
    late = ended(30, 0, 0.9, method="full")
    assert wanted(*others, *above, late) == Move(trial=late, target_flops=LEVELS[1])


def test_an_infeasible_recipe_is_tried_where_it_can_take_a_step() -> None:
    needy = record(
        0, recipe=recipe(0, target_flops=LEVELS[0]), state=TrialState.INFEASIBLE, needs_flops=1.5e9
    )
    others = [ended(n, 0, 0.5) for n in range(1, 30)]
    raised = [over(ended(40 + n, 1, 0.5), continues=f"t{n + 1}") for n in range(9)]
    assert wanted(needy, *others, *raised) == Move(trial=needy, target_flops=LEVELS[1])


def test_an_infeasible_recipe_that_no_rung_helps_is_left() -> None:
    hopeless = record(0, state=TrialState.INFEASIBLE, needs_flops=1e12)
    assert all(not field_of(hopeless).late(rung) for rung in range(len(LEVELS)))


def test_the_last_of_the_budget_raises_the_best_and_begins_nothing() -> None:
    trials = [ended(0, 2, 0.2), ended(1, 2, 0.3), *(ended(n, 0, 0.5) for n in range(2, 5))]
    room = Room(flops=1e10, share_left=FINISH_SHARE / 2)
    assert wanted(*trials, room=room) == Move(trial=trials[0], target_flops=LEVELS[3])
    lower = Move(trial=trials[2], target_flops=LEVELS[1])
    assert wanted(*trials, room=replace(room, flops=5e9)) == lower, "that raise costs 6e9"
    assert wanted(*trials, room=replace(room, flops=LEVELS[0])) is None, "though a recipe would fit"


def test_the_leader_climbs_while_the_budget_still_holds_its_way_to_the_top() -> None:
    leader, other = ended(0, 1, 0.2), ended(1, 0, 0.5)
    climb = (LEVELS[2] - LEVELS[1] / 2) + (LEVELS[3] - LEVELS[2] / 2)
    short = Room(flops=climb + LEVELS[2] * 0.9)
    assert wanted(leader, other, room=short) == Move(trial=leader, target_flops=LEVELS[2])


def test_a_budget_without_room_gets_nothing() -> None:
    assert wanted(room=Room(flops=LEVELS[0] / 2)) is None
    assert wanted(room=Room(trials=0)) is None


def test_a_trial_is_paused_only_below_the_lowest_aim_of_its_space() -> None:
    race = Race(lowest=1)
    assert race.judge(standing(0.5, [0.5], rung=0)).decision is Decision.PAUSE
    assert race.judge(standing(0.5, [0.5], rung=1)) == GO_ON


def test_the_checkpoints_of_a_few_candidates_are_kept() -> None:
    trials = [ended(n, 0, 0.5 + n / 100) for n in range(KEPT + 5)]
    stepless = replace(ended(99, 0, 0.1), measurements=(measurement(0, 0.1),))
    kept = Race().candidates(field_of(*trials, stepless))
    assert set(kept) == {trial.trial_id for trial in trials[: KEPT - 1]}


def paused(number: int, rung: int, error: float) -> TrialRecord:
    """A trial that waits at a rung below its aim."""
    measured = replace(measurement(rung, error, train_flops=LEVELS[rung]), rung=rung)
    return record(
        number,
        state=TrialState.PAUSED,
        measurements=(measured,),
        executed_flops=LEVELS[rung],
    )


def test_of_the_paused_trials_of_a_rung_the_best_few_may_go_on() -> None:
    waiting = [paused(n, 0, 0.9 - n / 100) for n in range(WAITING + 3)]
    others = [paused(100 + n, 1, 0.9) for n in range(WAITING)]
    given_up = Race().hopeless(field_of(*waiting, *others))
    assert set(given_up) == {"t0", "t1", "t2"}
    assert given_up["t0"] == f"{WAITING} better trials wait at rung 0: its checkpoint is dropped"


def test_a_trial_that_is_given_up_counts_where_it_was_and_is_not_raised() -> None:
    waits, other = paused(0, 1, 0.3), paused(1, 1, 0.4)
    before = field_of(waits, other)
    field = field_of(replace(waits, state=TrialState.HALVED), other)
    assert [place[-1] for place in field.ended(1)] == ["t0", "t1"]
    assert [place[-1] for place in field.ready(1)] == ["t1"]
    assert [field.cost(rung) for rung in range(4)] == [before.cost(rung) for rung in range(4)]
