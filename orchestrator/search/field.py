"""The field of a race: every trial of the sweep as its rungs see it."""

from bisect import bisect_left, bisect_right, insort
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import inf, isfinite

import numpy as np
from numpy.typing import NDArray

from orchestrator.store.ledger import TrialRecord, TrialState

Floats = NDArray[np.float64]
_HAIR = 1 + 1e-9
"""Levels are equal that differ by rounding."""

_ENDED = (TrialState.COMPLETE, TrialState.PAUSED, TrialState.HALVED)

ErrorsAt = Callable[[int], Mapping[str, float]]
"""Validation error, 0-1, by trial id of all trials measured at a rung."""
Place = tuple[float, float, int, str]
"""A trial's error and loss at its end, its number and its id: in this order trials are better."""


@dataclass(frozen=True, kw_only=True)
class Room:
    """The rest of the budget besides what the trials that run may still spend."""

    flops: float | None = None
    """Training FLOPs; None where the budget does not limit them."""
    trials: int | None = None
    """Trials that may still begin; None where the budget does not limit them."""
    share_left: float = 1.0
    """The part of the whole budget, 0-1, that is left of the limit which is nearest."""

    def holds(self, flops: float) -> bool:
        """Whether another trial of so many training FLOPs fits."""
        return (self.flops is None or flops <= self.flops) and self.trials != 0

    def holds_rest_of(self, trial: TrialRecord) -> bool:
        """Whether a trial that has begun may spend all that it aims at."""
        return self.flops is None or unspent_flops(trial) <= self.flops


class Field:
    """Trials by the rung that they aim at: who ended there, who may go on, and what it cost.

    It holds nothing but what the ledger's records say, whatever the order in which they came, so
    that a restarted driver's is the same. Costs are whole FLOPs, which add up alike in any order.
    """

    def __init__(
        self, levels: Sequence[float], errors_at: ErrorsAt, trials: Iterable[TrialRecord] = ()
    ) -> None:
        """`levels` are the rungs' FLOPs, ascending."""
        self.levels = tuple(levels)
        self.errors_at = errors_at
        self._trials: dict[str, TrialRecord] = {}
        self._continued: set[str] = set()
        """Trials that another one continues."""
        self._confirming: dict[str, None] = {}
        """Trials that run another's recipe once more; they have no part in the race."""
        self._paused: dict[str, None] = {}
        self._live: dict[str, None] = {}
        self._ended: dict[int, list[Place]] = defaultdict(list)
        self._ready: dict[tuple[int, str | None], list[Place]] = defaultdict(list)
        """Who ended at a rung and is not continued, of one method or, under None, of all."""
        self._waiting: dict[int, list[Place]] = defaultdict(list)
        """Who is paused at a rung."""
        self._late: dict[int, list[Place]] = defaultdict(list)
        """Recipes that need a rung to take their first step and are not continued yet."""
        self._methods: dict[int, Counter[str]] = defaultdict(Counter)
        """Trials of each method that aim at a rung and are not infeasible."""
        self._cost: dict[int, int] = defaultdict(int)
        self._entered: dict[int, int] = defaultdict(int)
        """The part of `_cost` that went to recipes that began at the rung."""
        self._eval: dict[int, list[int]] = defaultdict(lambda: [0, 0])
        """Evaluation FLOPs and number of the trials that ended at a rung."""
        self._lowest_error = np.ones(len(self.levels))
        """The lowest error measured at each rung; 1 where there is none."""
        self.evidence = 0
        """How many measurements there are, and trials that diverged: it only grows."""
        for trial in trials:
            self.update(trial)

    def __len__(self) -> int:
        return len(self._trials)

    @property
    def paused(self) -> Sequence[TrialRecord]:
        """The trials that wait at a rung below their aim, in order of suggestion."""
        return sorted((self._trials[i] for i in self._paused), key=lambda trial: trial.number)

    def affordable(self, room: Room) -> Sequence[TrialRecord]:
        """The paused trials of which the budget holds all that they still aim at."""
        return [trial for trial in self.paused if room.holds_rest_of(trial)]

    @property
    def running(self) -> Sequence[TrialRecord]:
        """The trials that run or are about to, besides confirming ones."""
        return [self._trials[trial_id] for trial_id in self._live]

    @property
    def confirming(self) -> Sequence[TrialRecord]:
        """The trials that confirm others, however they stand."""
        return [self._trials[trial_id] for trial_id in self._confirming]

    def trials(self) -> Iterable[TrialRecord]:
        """All trials, in order of suggestion."""
        return self._trials.values()

    def frontier(self) -> Floats:
        """The lowest error measured at each rung or below; 1 where there is none."""
        frontier: Floats = np.minimum.accumulate(self._lowest_error)
        return frontier

    def trial(self, trial_id: str) -> TrialRecord:
        return self._trials[trial_id]

    def rung(self, trial: TrialRecord) -> int:
        """The rung that the trial counts at: its aim, or where it paused or was stopped."""
        if trial.state in (TrialState.PAUSED, TrialState.HALVED) and trial.measurements:
            return trial.measurements[-1].rung
        return max(0, bisect_right(self.levels, trial.recipe.target_flops * _HAIR) - 1)

    def update(self, trial: TrialRecord) -> None:
        """Takes note of a trial's record, which replaces the one known of it."""
        if (before := self._trials.get(trial.trial_id)) is not None:
            self._count(before, -1)
        self._measure(trial, known=len(before.measurements) if before else 0)
        if trial.state is TrialState.DIVERGED and not (before and before.state is trial.state):
            self.evidence += 1
        self._trials[trial.trial_id] = trial
        if trial.continues is not None and trial.continues not in self._continued:
            self._count(self._trials[trial.continues], -1)
            self._continued.add(trial.continues)
            self._count(self._trials[trial.continues], 1)
        self._count(trial, 1)

    def ended(self, rung: int) -> Sequence[Place]:
        """The trials that completed, are paused or were stopped at the rung, from the best."""
        return self._ended[rung]

    def ready(self, rung: int, method: str | None = None) -> Sequence[Place]:
        """The ended trials that nothing continues yet, from the best; of one method if given."""
        return self._ready[rung, method]

    def waiting(self, rung: int) -> Sequence[Place]:
        """The trials that are paused at the rung, from the best."""
        return self._waiting[rung]

    def late(self, rung: int) -> Sequence[Place]:
        """The recipes that cannot take a step below the rung and have not been tried there."""
        return self._late[rung]

    def methods_ready(self, rung: int) -> Iterator[str]:
        """The methods that have a trial ready at the rung, in alphabetical order."""
        found = (m for (r, m), places in self._ready.items() if r == rung and m and places)
        return iter(sorted(found))

    def methods(self, rung: int) -> Mapping[str, int]:
        """How many trials of each method aim, or aimed, at the rung."""
        return self._methods[rung]

    def cost(self, rung: int) -> int:
        """FLOPs of training and evaluation that trials aiming at the rung cost, or will."""
        return self._cost[rung]

    def entered(self, rung: int) -> int:
        """The part of `cost` that went to recipes which began at the rung."""
        return self._entered[rung]

    def train_cost(self, rung: int, trial: TrialRecord | None = None) -> float:
        """Training FLOPs of a new recipe that goes to the rung, or of `trial`'s going on to it."""
        if trial is None or not trial.measurements:
            return self.levels[rung]
        last = trial.measurements[-1]
        paused = trial.state is TrialState.PAUSED
        return max(0.0, self.levels[rung] - (last.train_flops if paused else last.trunk_flops))

    def kept_share(self, trial: TrialRecord) -> float:
        """The share of its training FLOPs that the trial's run towards more need not repeat."""
        last = trial.measurements[-1]
        if trial.state is TrialState.PAUSED:
            return 1.0
        return last.trunk_flops / last.train_flops if last.train_flops else 0.0

    def full_cost(self, rung: int, trial: TrialRecord | None = None) -> int:
        """`train_cost` and the evaluation that comes with it, as far as it is known."""
        known = [near for near in self._eval if self._eval[near][1]]
        near = min(known, key=lambda other: (abs(other - rung), other), default=None)
        flops, trials = (0, 1) if near is None else self._eval[near]
        return int(self.train_cost(rung, trial)) + flops // trials

    def _measure(self, trial: TrialRecord, *, known: int) -> None:
        """Takes note of what a trial has measured, if it is more than was known."""
        if len(trial.measurements) == known:
            return
        self.evidence += len(trial.measurements) - known
        for measurement in trial.measurements:
            if measurement.val_error < self._lowest_error[measurement.rung]:
                self._lowest_error[measurement.rung] = measurement.val_error

    def _count(self, trial: TrialRecord, sign: int) -> None:
        """Adds a trial to, or takes it from, all that is counted in the race."""
        if trial.confirms is not None:
            _keep(self._confirming, trial.trial_id, sign)
            return
        rung, method = self.rung(trial), trial.recipe.method
        if trial.state is TrialState.PAUSED:
            _keep(self._paused, trial.trial_id, sign)
            _place(self._waiting[rung], _place_of(trial), sign)
        if trial.state is TrialState.RUNNING:
            _keep(self._live, trial.trial_id, sign)
        cost = self._cost_of(trial, rung)
        self._cost[rung] += sign * cost
        if trial.continues is None:
            self._entered[rung] += sign * cost
        if trial.state is not TrialState.INFEASIBLE:
            self._methods[rung][method] += sign
            if not self._methods[rung][method]:
                del self._methods[rung][method]
        if trial.state in _ENDED and trial.measurements:
            place = _place_of(trial)
            _place(self._ended[rung], place, sign)
            may_go_on = trial.state is not TrialState.HALVED and isfinite(place[0])
            if may_go_on and trial.trial_id not in self._continued:
                _place(self._ready[rung, None], place, sign)
                _place(self._ready[rung, method], place, sign)
            self._eval[rung][0] += sign * self._evaluation(trial)
            self._eval[rung][1] += sign
        if trial.state is TrialState.INFEASIBLE and trial.trial_id not in self._continued:
            needed = self._needed_rung(trial)
            if needed is not None and needed > rung:
                _place(self._late[needed], (0.0, 0.0, trial.number, trial.trial_id), sign)

    def _cost_of(self, trial: TrialRecord, rung: int) -> int:
        """The trial's cost so far; what it will cost while it runs or waits to.

        One that is infeasible costs what was executed, which may be nothing, but took a slot.
        """
        if trial.state is TrialState.RUNNING:
            parent = self._trials[trial.continues] if trial.continues else None
            return int(self.train_cost(rung, parent))
        return int(trial.executed_flops) + self._evaluation(trial)

    def _evaluation(self, trial: TrialRecord) -> int:
        """Evaluation FLOPs of the trial alone; those of the one it continues may be counted in."""
        if not trial.measurements:
            return 0
        flops = trial.measurements[-1].eval_flops
        parent = self._trials[trial.continues].measurements if trial.continues else ()
        before = parent[-1].eval_flops if parent else 0.0
        return int(flops - before if flops > before else flops)

    def _needed_rung(self, trial: TrialRecord) -> int | None:
        """The lowest rung at which an infeasible recipe can take a step."""
        if trial.needs_flops is None:
            return None
        rung = bisect_left(self.levels, trial.needs_flops / _HAIR)
        return rung if rung < len(self.levels) else None


def unspent_flops(trial: TrialRecord) -> float:
    """The training FLOPs that the trial may still spend."""
    spent = trial.measurements[-1].train_flops if trial.measurements else 0.0
    return max(0.0, trial.recipe.target_flops - spent)


def _place_of(trial: TrialRecord) -> Place:
    """The place of a trial by its end; what is not finite is worst."""
    last = trial.measurements[-1]
    error = last.val_error if isfinite(last.val_error) else inf
    loss = last.val_loss if isfinite(last.val_loss) else inf
    return error, loss, trial.number, trial.trial_id


def _keep(ids: dict[str, None], trial_id: str, sign: int) -> None:
    if sign > 0:
        ids[trial_id] = None
    else:
        del ids[trial_id]


def _place(places: list[Place], place: Place, sign: int) -> None:
    if sign > 0:
        insort(places, place)
    else:
        del places[bisect_left(places, place)]
