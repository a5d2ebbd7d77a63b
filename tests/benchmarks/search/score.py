"""Scores of a replayed search: how much of the best-known hypervolume it had at what cost.

The hypervolume is the mean over the rungs r of max(0, e_chance - F[r]), where F[r] is the held-out
error of what a search would report at r: of all its measurements at rungs up to r the one with the
lowest error on half A. Best-known is the same by an oracle that has seen the whole table.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from math import inf, log10
from typing import Any

import numpy as np

from tests.benchmarks.search.replay import Event
from tests.benchmarks.search.tables import CurveTable

SHARES = (0.9, 0.95, 0.99)
"""Shares of the best-known hypervolume whose cost is told."""
BUDGETS = (1.0, 2.0, 3.0, 5.0, 8.0, 12.0, 20.0)
"""Costs, in full-length runs, at which the share is told."""
_TEST_WEIGHT = 2 / 3
"""The test images are twice those of half B."""


class HeldOut(StrEnum):
    """The errors that reported recipes are scored on."""

    A = "a"
    """Half A, which the search sees: what it found, without the luck of what it reports."""
    B = "b"
    """Half B of the validation images."""
    BOTH = "both"
    """Half B and the test images together, which is three times as many."""


class Cost(StrEnum):
    """The FLOPs that count as a sweep's cost."""

    ALL = "all"
    """Training and evaluation."""
    TRAIN = "train"
    """Training alone."""


@dataclass(frozen=True, kw_only=True)
class Score:
    """A search's score. Costs are in full-length runs, shares in those of best-known."""

    runs_to: dict[float, float]
    """Cost at which a share was first reached, by share; infinite where it never was."""
    share_at: dict[float, float]
    """Share that was held at a cost, by cost."""
    top_third: float
    """Share of the best-known hypervolume of the highest third of the rungs, at the end."""
    regret: float
    """The most that the reported error lies above best-known at any rung, at the end."""
    end: float
    """Share at the end."""
    cost: float
    """Cost at the end: the budget, with the evaluation that came with it."""
    measured: tuple[int, ...]
    """Measurements at each rung."""
    recipes: int
    """Recipes that were measured."""
    seconds: float
    """Simulated time of the last measurement."""


class Scorer:
    """Scores searches of one table."""

    def __init__(
        self,
        table: CurveTable,
        *,
        on: HeldOut = HeldOut.B,
        cost: Cost = Cost.ALL,
        told_at: Sequence[float] = BUDGETS,
    ) -> None:
        """`told_at` are costs at which the share is told."""
        self._told_at = told_at
        self._table = table
        self._on = on
        self._cost = cost
        self.best = self._oracle()
        """Best-known error of every rung."""

    def score(self, events: Sequence[Event]) -> Score:
        """The score of a search."""
        costs, frontiers = self.steps(events)
        gains = self._gains(frontiers)
        shares = gains.mean(axis=1) / self._gains(self.best).mean()
        rungs = len(self._table.levels)
        top = slice(rungs - max(1, round(rungs / 3)), rungs)
        top_best = self._gains(self.best)[top].mean()
        return Score(
            runs_to={share: _first(costs, shares, share) for share in SHARES},
            share_at={cost: _held(costs, shares, cost) for cost in self._told_at},
            top_third=float(gains[-1, top].mean() / top_best) if len(costs) else 0.0,
            regret=float((frontiers[-1] - self.best).max()) if len(costs) else inf,
            end=float(shares[-1]) if len(costs) else 0.0,
            cost=float(costs[-1]) if len(costs) else 0.0,
            measured=tuple(sum(event.rung == rung for event in events) for rung in range(rungs)),
            recipes=len({event.number for event in events}),
            seconds=events[-1].seconds if events else 0.0,
        )

    def steps(self, events: Sequence[Event]) -> tuple[Any, Any]:
        """Costs in full-length runs [events], and held-out errors reported then [events, rungs]."""
        chance = self._table.chance_error
        rungs = len(self._table.levels)
        seen, reported = np.full(rungs, inf), np.full(rungs, chance)
        costs, frontiers = np.zeros(len(events)), np.zeros((len(events), rungs))
        for row, event in enumerate(events):
            if event.error_a < seen[event.rung]:
                seen[event.rung] = event.error_a
                reported[event.rung] = self._held_out(event)
            costs[row] = self._spent(event) / self._table.levels[-1]
            frontiers[row] = _prefix_best(seen, reported)
        return costs, frontiers

    def _spent(self, event: Event) -> float:
        return event.sweep_flops if self._cost is Cost.ALL else event.sweep_train_flops

    def _gains(self, errors: Any) -> Any:
        return np.maximum(0.0, self._table.chance_error - errors)

    def _oracle(self) -> Any:
        """The error reported at every rung by who has seen all; the mean of those that tie."""
        rungs = len(self._table.levels)
        seen, held = np.full(rungs, inf), [[self._table.chance_error] for _ in range(rungs)]
        for curve in self._table.curves.values():
            for point in curve.points:
                error, rung = point.measurement.val_error, point.measurement.rung
                if error < seen[rung]:
                    seen[rung], held[rung] = error, []
                if error == seen[rung]:
                    held[rung].append(self._mix(error, point.error_b, point.test_error))
        return _prefix_best(seen, np.array([np.mean(errors) for errors in held]))

    def _held_out(self, event: Event) -> float:
        return self._mix(event.error_a, event.error_b, event.test_error)

    def _mix(self, error_a: float, error_b: float, test_error: float) -> float:
        match self._on:
            case HeldOut.A:
                return error_a
            case HeldOut.B:
                return error_b
            case HeldOut.BOTH:
                return _TEST_WEIGHT * test_error + (1 - _TEST_WEIGHT) * error_b


def mean_cost(costs: Sequence[float], *, budget: float) -> float:
    """The geometric mean of costs; none counts as more than twice the budget."""
    return float(10 ** np.mean([log10(min(cost, 2 * budget)) for cost in costs]))


def _prefix_best(seen: Any, reported: Any) -> Any:
    """The error reported at every rung: of the best seen up to it, the cheaper of equals."""
    frontier = np.empty(len(seen))
    best = 0
    for rung in range(len(seen)):
        if seen[rung] < seen[best]:
            best = rung
        frontier[rung] = reported[best]
    return frontier


def _first(costs: Any, shares: Any, share: float) -> float:
    """The cost at which the share is first reached."""
    reached = np.flatnonzero(shares >= share)
    return float(costs[reached[0]]) if len(reached) else inf


def _held(costs: Any, shares: Any, cost: float) -> float:
    """The share that is held once `cost` is spent."""
    spent = int(np.searchsorted(costs, cost, side="right"))
    return float(shares[spent - 1]) if spent else 0.0
