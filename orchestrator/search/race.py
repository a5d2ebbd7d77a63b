"""A race over compute: every rung gets its share of the sweep, cheap ones first."""

from collections.abc import Sequence

import numpy as np

from orchestrator.search.field import Field, Place, Room
from orchestrator.search.forecaster import Forecaster
from orchestrator.search.strategy import GO_ON, Decision, Move, Standing, Verdict
from orchestrator.store.ledger import TrialRecord, TrialState


class Race:
    """Recipes begin at the lowest rung, and the best of each rung are raised to the next.

    A free worker raises a recipe to the highest rung that is due. A rung is due when what was
    spent on trials aiming at it, and what one more costs, is no more than was spent on a rung
    below: so all rungs get the same share, and as many trials go up as the ratio of the rungs'
    whole costs, evaluation included, lets (the promotion form of asynchronous successive halving,
    arXiv 1810.05934, has the same ratio everywhere). Targets climb with the evidence: whatever is
    compared at a rung has come to the end of its schedule there.

    Of a rung's places, one goes to the best of each method that has none above yet, because what
    leads a cheap rung may not lead a dear one; a share goes to recipes that begin there, which
    alone can tell whether the rungs below know anything.
    """

    def __init__(
        self,
        *,
        entry_share: float = 0.25,
        reserve: bool = True,
        families: bool = True,
        forecaster: Forecaster | None = None,
        growth: float = 1.0,
        learnt_below: float = 1.0,
        tries: int = 0,
        lowest: int = 0,
        highest: int | None = None,
    ) -> None:
        """`lowest` and `highest` are the rungs between which the space has recipes aim."""
        self._entry_share = entry_share
        self._reserve = reserve
        self._families = families
        self._forecaster = forecaster
        self._growth = growth
        self._learnt_below = learnt_below
        self._tries = tries
        self._lowest = lowest
        self._highest = highest

    def judge(self, standing: Standing) -> Verdict:
        """Pauses a trial where the space would have it aim at more than it was given."""
        if standing.over or standing.measurement.rung >= self._lowest:
            return GO_ON
        return Verdict(decision=Decision.PAUSE)

    def next_move(self, field: Field, room: Room) -> Move | None:
        """What a free worker does now; None where the budget has no room for anything wanted."""
        if self._forecaster is not None:
            self._forecaster.learn(field)
        top = field.top if self._highest is None else self._highest
        rungs = list(range(top + 1))
        blocked = False
        if self._reserve and (move := self._last_climb(field, room, rungs)):
            return move
        for below, rung in reversed(list(zip(rungs, rungs[1:], strict=False))):
            move, train, full = self._wanted(field, below, rung)
            if move is None or field.cost(rung) + full > self._growth * max(field.cost(r) for r in rungs if r < rung):
                continue
            if room.holds(train):
                return move
            blocked = True
        if blocked:
            return self._fitting(field, room, rungs)
        entry = field.levels[self._entry(field, rungs)]
        return Move(target_flops=entry) if room.holds(entry) else None

    def _entry(self, field: Field, rungs: list[int]) -> int:
        """The lowest rung at which somebody has learnt, or too few have tried."""
        if self._tries:
            for rung in rungs:
                errors = field.errors_at(rung).values()
                if rung < self._lowest:
                    continue
                if len(errors) < self._tries or any(e < self._learnt_below for e in errors):
                    return rung
        return self._lowest

    def _wanted(self, field: Field, below: int, rung: int) -> tuple[Move | None, float, int]:
        """What the rung would have next, its training FLOPs and its whole cost."""
        level = field.levels[rung]
        fresh = field.full_cost(rung)
        enough = len(field.ended(below)) >= 2
        share = field.entered(rung) + fresh <= self._entry_share * (field.cost(rung) + fresh)
        if late := field.late(rung):
            if share or not field.ready(below):
                trial = field.trial(late[0][-1])
                return Move(trial=trial, target_flops=level), level, fresh
        elif share and enough:
            return Move(target_flops=level), level, fresh
        best = self._best(field, below, rung)
        if best is None:
            return None, 0.0, 0
        trial = field.trial(best)
        return (
            _up(trial, level),
            field.train_cost(rung, trial),
            field.full_cost(rung, trial),
        )

    def _best(self, field: Field, below: int, rung: int) -> str | None:
        """The trial to raise: the best of a method that has nothing at the rung, else the best."""
        if self._families:
            firsts = [
                field.ready(below, method)[0]
                for method in field.methods_ready(below)
                if not field.reached(rung, method)
            ]
            leaders = self._leaders(field, below, rung)
            if firsts and field.ended(rung):
                return min(firsts)[-1]
            return leaders[0][-1] if leaders else None
        leaders = self._leaders(field, below, rung)
        return leaders[0][-1] if leaders else None

    def _leaders(self, field: Field, below: int, rung: int) -> Sequence[Place]:
        places = list(field.ready(below)[:40])
        if len(places) < 2 or self._forecaster is None or self._forecaster.forecast is None:
            return places[:1]
        trials = [field.trial(place[-1]) for place in places]
        gains = self._forecaster.further_gains(trials, rung=rung)
        ranks = np.argsort(np.argsort(-gains, kind="stable"), kind="stable") + np.arange(len(places))
        return [places[int(np.argmin(ranks))]]

    def _last_climb(self, field: Field, room: Room, rungs: list[int]) -> Move | None:
        """Raises the leader while the budget still holds its climb to the top, if nobody is there."""
        top = rungs[-1]
        if room.flops is None and room.trials is None:
            return None
        if field.ended(top) or any(field.rung(t) == top for t in field.running):
            return None
        leader, at = None, -1
        for rung in reversed(rungs[:-1]):
            if field.ready(rung):
                leader, at = field.trial(field.ready(rung)[0][-1]), rung
                break
        if leader is None or any(field.rung(t) > at for t in field.running):
            return None
        last = leader.measurements[-1]
        kept = last.trunk_flops / last.train_flops if last.train_flops else 0.0
        climb = field.train_cost(at + 1, leader)
        for rung in range(at + 2, top + 1):
            climb += field.levels[rung] - kept * field.levels[rung - 1]
        spare = field.levels[at + 1]
        steps = top - at
        short = (room.flops is not None and room.flops < climb + spare) or (
            room.trials is not None and room.trials <= steps
        )
        if not short or not room.holds(field.train_cost(at + 1, leader)):
            return None
        return _up(leader, field.levels[at + 1])

    def _fitting(self, field: Field, room: Room, rungs: list[int]) -> Move | None:
        """The dearest raise that the rest of the budget holds, of a trial that is worth it."""
        for below, rung in reversed(list(zip(rungs, rungs[1:], strict=False))):
            places = field.ready(below)
            if not places:
                continue
            trial = field.trial(places[0][-1])
            rank = sum(place < places[0] for place in field.ended(below))
            worth = rank < max(1, len(field.ended(below)) // 2)
            if worth and room.holds(field.train_cost(rung, trial)):
                return _up(trial, field.levels[rung])
        return None


def _up(trial: TrialRecord, level: float) -> Move:
    """A paused trial goes on; the recipe of one that is over is raised to the level."""
    return Move(trial=trial, target_flops=None if trial.state is TrialState.PAUSED else level)
