"""A race over compute: every rung gets its share of the sweep, cheap ones first."""

from bisect import bisect_left
from collections.abc import Collection, Mapping, Sequence
from itertools import pairwise

import numpy as np

from orchestrator.search.field import Field, Place, Room
from orchestrator.search.forecaster import Forecaster
from orchestrator.search.strategy import GO_ON, Decision, Move, Standing, Verdict
from orchestrator.store.ledger import TrialRecord, TrialState

ENTRY_SHARE = 0.1
"""Share of a rung's cost that may go to recipes which begin there."""
FINISH_SHARE = 0.2
"""Share of the budget that is kept for raising the best."""
FAMILY_PLACES = 3
"""Trials at a rung for each method that has one there."""
CONSIDERED = 40
"""Trials at a rung, from the best, of which a forecast chooses the one to raise."""

KEPT = 8
"""Finished trials of a rung whose checkpoints are kept."""
WAITING = 32
"""Paused trials of a rung that may yet go on, and whose checkpoints are kept."""


class Race:
    """Recipes begin at the lowest rung, and the best of each rung are raised to the next.

    A free worker raises a recipe to the highest rung that is due. A rung is due when what was
    spent on trials aiming at it, and what one more costs, is no more than was spent on a rung
    below: so all rungs get the same share, and as many trials go up as the ratio of the rungs'
    whole costs, evaluation included, lets (the promotion form of asynchronous successive halving,
    arXiv 1810.05934, has the same ratio everywhere). Targets climb with the evidence: what is
    compared at a rung has come to the end of its schedule there.

    Which trial is raised says its error, together with what a forecast expects of it further up
    if there is one. Some of a rung's places go to the best of methods that have none there, because
    what leads a cheap rung may not lead a dear one; some to recipes that begin there, which alone
    can tell whether the rungs below know anything. The last of the budget raises the best as far as
    they go, and what it cannot hold is left: no new recipe would get anywhere.
    """

    def __init__(
        self, *, forecaster: Forecaster | None = None, lowest: int = 0, highest: int | None = None
    ) -> None:
        """`lowest` and `highest` are the rungs between which the space has recipes aim."""
        self._forecaster = forecaster
        self._lowest = lowest
        self._highest = highest

    def judge(self, standing: Standing) -> Verdict:
        """Pauses a trial where the space had it aim at more than it was given."""
        if standing.over or standing.measurement.rung >= self._lowest:
            return GO_ON
        return Verdict(decision=Decision.PAUSE)

    def next_move(self, field: Field, room: Room) -> Move | None:
        """Says what a free worker does now; None where nothing wanted has room in the budget."""
        climbs = self._climbs(field)
        if (move := self._last_climb(field, room)) is not None:
            return move
        wanted = False
        if room.share_left < FINISH_SHARE:
            move, wanted = self._finishing_move(field, room)
            if move is not None or wanted:
                return move
        for below, rung in climbs:
            raised = self._due_move(field, below, rung)
            if raised is not None and _fits(field, room, raised, rung):
                return raised
        entry = field.levels[self._lowest]
        return Move(target_flops=entry) if room.holds(entry) else None

    def candidates(self, field: Field) -> Collection[str]:
        """The best few of each rung that keep steps for their recipe's run towards more compute."""
        return {
            place[-1]
            for rung in range(self._top(field))
            for place in field.ready(rung)[:KEPT]
            if field.trial(place[-1]).state is TrialState.COMPLETE
            and field.kept_share(field.trial(place[-1]))
        }

    def hopeless(self, field: Field) -> Mapping[str, str]:
        """The paused trials of each rung that are not among its best few."""
        return {
            place[-1]: f"{WAITING} better trials wait at rung {rung}: its checkpoint is dropped"
            for rung in range(self._top(field))
            for place in field.waiting(rung)[WAITING:]
        }

    def _climbs(self, field: Field) -> Sequence[tuple[int, int]]:
        """The steps from a rung to the next, from the highest."""
        return list(pairwise(range(self._top(field) + 1)))[::-1]

    def _top(self, field: Field) -> int:
        return len(field.levels) - 1 if self._highest is None else self._highest

    def _due_move(self, field: Field, below: int, rung: int) -> Move | None:
        """The rung's next trial if it is due."""
        bound = max(field.cost(lower) for lower in range(rung))
        if field.cost(rung) + field.levels[rung] - field.levels[below] > bound:
            return None  # whoever it were
        move = self._wanted(field, below, rung)
        if move is None or field.cost(rung) + field.full_cost(rung, move.trial) > bound:
            return None
        return move

    def _wanted(self, field: Field, below: int, rung: int) -> Move | None:
        """The rung's next trial, due or not: a recipe that begins there, or one from below."""
        level, ready = field.levels[rung], field.ready(below)
        fresh = field.full_cost(rung)
        has_share = field.entered(rung) + fresh <= ENTRY_SHARE * (field.cost(rung) + fresh)
        late = field.late(rung)
        if late and (has_share or not ready):
            return Move(trial=field.trial(late[0][-1]), target_flops=level)
        if has_share and len(field.ended(below)) > 1:
            return Move(target_flops=level)
        return _up(field.trial(self._best(field, below, rung)), level) if ready else None

    def _best(self, field: Field, below: int, rung: int) -> str:
        """The trial to raise: the best of a method that is due a place, else the best of all."""
        methods = field.methods(rung)
        if FAMILY_PLACES * len(methods) <= sum(methods.values()):
            firsts = [
                field.ready(below, method)[0]
                for method in field.methods_ready(below)
                if method not in methods
            ]
            if firsts:
                return min(firsts)[-1]
        return self._leader(field, below, rung)[-1]

    def _leader(self, field: Field, below: int, rung: int) -> Place:
        """The best by its error, and by what is expected of it at the rung and above."""
        places = field.ready(below)[:CONSIDERED]
        if len(places) == 1 or self._forecaster is None or not self._forecaster.ready:
            return places[0]
        trials = [field.trial(place[-1]) for place in places]
        gains = self._forecaster.further_gains(trials, rung=rung)
        expected = np.argsort(np.argsort(-gains, kind="stable"), kind="stable")
        return places[int(np.argmin(expected + np.arange(len(places))))]

    def _last_climb(self, field: Field, room: Room) -> Move | None:
        """Raises the leader while the budget still holds its climb, if nobody is at the top."""
        top = self._top(field)
        if field.ended(top) or (room.flops is None and room.trials is None):
            return None
        at = max((rung for rung in range(top) if field.ready(rung)), default=None)
        if at is None or any(field.rung(trial) > at for trial in field.running):
            return None
        leader = field.trial(field.ready(at)[0][-1])
        first = field.train_cost(at + 1, leader)
        kept = field.kept_share(leader)
        rest = sum(
            field.levels[rung] - kept * field.levels[rung - 1] for rung in range(at + 2, top + 1)
        )
        spare = field.levels[at + 1]  # what another move may cost before the climb begins
        short = (room.flops is not None and room.flops < first + rest + spare) or (
            room.trials is not None and room.trials <= top - at
        )
        move = _up(leader, field.levels[at + 1])
        return move if short and _fits(field, room, move, at + 1) else None

    def _finishing_move(self, field: Field, room: Room) -> tuple[Move | None, bool]:
        """The highest raise of a good trial that the budget holds, and whether any was wanted.

        Raises to the lower half of the rungs are wanted by nobody, but fill what is left.
        """
        wanted = False
        for below, rung in self._climbs(field):
            upper = 2 * rung >= self._top(field)
            if not field.ready(below) or not (upper or wanted):
                continue
            leader = self._leader(field, below, rung)
            ended = field.ended(below)
            if 2 * bisect_left(ended, leader) >= len(ended):
                continue
            wanted = wanted or upper
            move = _up(field.trial(leader[-1]), field.levels[rung])
            if _fits(field, room, move, rung):
                return move, wanted
        return None, wanted


def _fits(field: Field, room: Room, move: Move, rung: int) -> bool:
    """Whether the budget holds the move; of a paused trial, all that it still aims at."""
    if move.trial is not None and move.trial.state is TrialState.PAUSED:
        return room.holds_rest_of(move.trial)
    return room.holds(field.train_cost(rung, move.trial))


def _up(trial: TrialRecord, level: float) -> Move:
    """A paused trial goes on; the recipe of one that is over is raised to the level."""
    return Move(trial=trial, target_flops=None if trial.state is TrialState.PAUSED else level)
