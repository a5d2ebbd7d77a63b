"""A replay of recorded curves: the product's driver over a simulated cluster and clock."""

import heapq
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

from orchestrator.search.config import Budget
from orchestrator.search.driver import Driver, Idle
from orchestrator.search.strategy import Decision, Strategy
from orchestrator.store.ledger import Ledger, TrialRecord
from orchestrator.store.retention import CheckpointKeeper
from tests.benchmarks.search.pool import Pool
from tests.benchmarks.search.tables import Curve, CurveTable, Point
from tests.orchestrator.fake_trials import Clock, MemoryJournal
from trainables.measurement import Outcome, Report

RATE = 3e10
"""FLOPs a simulated worker executes in a second, where no time was recorded."""
SET_UP_SECONDS = 0.2
"""Simulated seconds that it takes to hand a trial to a worker."""


@dataclass(frozen=True, kw_only=True)
class Event:
    """A measurement of a search, and what the search had spent by then."""

    sweep_flops: float
    """Training and evaluation FLOPs executed by all trials."""
    sweep_train_flops: float
    """The training FLOPs among them."""
    seconds: float
    """Simulated time."""
    number: int
    """The table's entry that was measured."""
    target_rung: int
    rung: int
    train_flops: float
    """Training FLOPs that the recipe costs alone."""
    error_a: float
    error_b: float
    test_error: float


@dataclass(frozen=True, kw_only=True)
class Setting:
    """One search to replay."""

    table: CurveTable
    seed: int
    workers: int
    budget_flops: float
    """Training FLOPs after which the search ends, as a sweep's budget counts them."""
    folder: Path
    """Where the search may keep files."""


@dataclass(kw_only=True)
class Bill:
    """The FLOPs that a search has executed."""

    train_flops: float = 0.0
    eval_flops: float = 0.0

    @property
    def flops(self) -> float:
        """Both together."""
        return self.train_flops + self.eval_flops

    def event(self, table_number: int, rung: int, point: Point, *, seconds: float) -> Event:
        """The event of a measurement that has just been paid."""
        measurement = point.measurement
        return Event(
            sweep_flops=self.flops,
            sweep_train_flops=self.train_flops,
            seconds=seconds,
            number=table_number,
            target_rung=rung,
            rung=measurement.rung,
            train_flops=measurement.train_flops,
            error_a=measurement.val_error,
            error_b=point.error_b,
            test_error=point.test_error,
        )


@dataclass(frozen=True, kw_only=True)
class Leg:
    """The way of a trial to its next report."""

    point: Point | None
    """None where the trial ends without another measurement."""
    train_flops: float
    """Executed on the way."""
    eval_flops: float
    seconds: float


def legs_of(curve: Curve, *, after: int | None, trunk_flops: float) -> list[Leg]:
    """The legs of a trial that goes on after its measurement at rung `after`, or is new.

    A new one that continues another executes only what lies above `trunk_flops`, and measures only
    there, at its end at the latest.
    """
    legs: list[Leg] = []
    spent, evaluated, seconds = 0.0, 0.0, 0.0
    for place, point in enumerate(curve.points):
        now = point.measurement
        last = place == len(curve.points) - 1
        done = after is not None and now.rung <= after
        if not done and (now.train_flops > trunk_flops or last):
            base = max(spent, trunk_flops)
            executed = max(0.0, now.train_flops - base)
            share = executed / (now.train_flops - spent) if now.train_flops > spent else 0.0
            evaluation = now.eval_flops - evaluated
            took = (now.train_seconds - seconds) * share + evaluation / RATE
            legs.append(Leg(point=point, train_flops=executed, eval_flops=evaluation, seconds=took))
        spent, evaluated, seconds = now.train_flops, now.eval_flops, now.train_seconds
    if curve.outcome is not Outcome.COMPLETE:
        rest = curve.unmeasured_flops
        legs.append(Leg(point=None, train_flops=rest, eval_flops=0.0, seconds=rest / RATE))
    return legs


@dataclass(order=True)
class _Arrival:
    """A report that arrives at a time; the first handed out of equals comes first."""

    seconds: float
    order: int
    trial: TrialRecord = field(compare=False)
    report: Report = field(compare=False)
    leg: Leg | None = field(compare=False)
    """None for a resumed trial that says once more where it is."""
    legs: list[Leg] = field(compare=False)
    """The legs that lie ahead."""


class Replay:
    """Drives a strategy through the product's own driver until the budget is spent."""

    def __init__(self, setting: Setting, strategy: Strategy, pool: Pool) -> None:
        table = setting.table
        self._table = table
        self._setting = setting
        self._pool = pool
        self._clock = Clock()
        self._clock.now = 0.0
        self.ledger = Ledger(MemoryJournal(), clock=self._clock)
        self.ledger.open(sweep_id="sweep")
        self.driver = Driver(
            ledger=self.ledger,
            strategy=strategy,
            keeper=CheckpointKeeper(self.ledger, (setting.folder / "trials").as_uri()),
            budget=Budget(sweep_flops=setting.budget_flops),
            levels=table.levels,
            seed=setting.seed,
            clock=self._clock,
        )
        self._bill = Bill()
        self._arrivals: list[_Arrival] = []
        self._order = 0
        self.events: list[Event] = []

    def run(self) -> list[Event]:
        """Every measurement in order of its time."""
        while self._bill.train_flops < self._setting.budget_flops:
            self._fill()
            if not self._arrivals:
                break
            self._step(heapq.heappop(self._arrivals))
        return self.events

    def _fill(self) -> None:
        while len(self._arrivals) < self._setting.workers:
            trial = self.driver.next_trial()
            if isinstance(trial, Idle):
                return
            self._begin(trial)

    def _begin(self, trial: TrialRecord) -> None:
        number, rung = self._table.entry(trial.recipe).number, self._table.rung(trial.recipe)
        self._pool.take(number, rung)
        curve = self._table.curve(number, rung, trial.seed)
        after = trial.measurements[-1].rung if trial.measurements else None
        legs = legs_of(curve, after=after, trunk_flops=self._trunk_flops(trial))
        if after is None:
            self._send(trial, legs, set_up=SET_UP_SECONDS)
            return
        again = Report(outcome=Outcome.RUNNING, measurement=trial.measurements[-1])
        self._push(trial, again, None, legs, SET_UP_SECONDS)

    def _trunk_flops(self, trial: TrialRecord) -> float:
        """The training FLOPs that a trial which continues another has in common with it."""
        if trial.continues is None or trial.measurements:
            return 0.0
        before = self.ledger.trial(trial.continues).measurements
        return before[-1].trunk_flops if before else 0.0

    def _send(self, trial: TrialRecord, legs: list[Leg], *, set_up: float) -> None:
        """Lets the trial run its next leg."""
        leg, ahead = legs[0], legs[1:]
        report = self._report(trial, leg, over=not ahead)
        self._push(trial, report, leg, ahead, set_up + leg.seconds)

    def _push(
        self, trial: TrialRecord, report: Report, leg: Leg | None, legs: list[Leg], seconds: float
    ) -> None:
        self._order += 1
        arrival = _Arrival(self._clock.now + seconds, self._order, trial, report, leg, legs)
        heapq.heappush(self._arrivals, arrival)

    def _report(self, trial: TrialRecord, leg: Leg, *, over: bool) -> Report:
        number, rung = self._table.entry(trial.recipe).number, self._table.rung(trial.recipe)
        if leg.point is not None:
            measurement = replace(leg.point.measurement, executed_flops=leg.train_flops)
            outcome = Outcome.COMPLETE if over else Outcome.RUNNING
            return Report(outcome=outcome, measurement=measurement)
        curve = self._table.curve(number, rung, trial.seed)
        infeasible = curve.outcome is Outcome.INFEASIBLE
        return Report(
            outcome=curve.outcome,
            reason=curve.reason,
            unmeasured_flops=leg.train_flops,
            needs_flops=self._table.needs_flops(number) if infeasible else None,
        )

    def _step(self, arrival: _Arrival) -> None:
        self._clock.now = arrival.seconds
        trial, leg = arrival.trial, arrival.leg
        if leg is not None:
            self._bill.train_flops += leg.train_flops
            self._bill.eval_flops += leg.eval_flops
            if leg.point is not None:
                number = self._table.entry(trial.recipe).number
                rung = self._table.rung(trial.recipe)
                self.events.append(
                    self._bill.event(number, rung, leg.point, seconds=self._clock.now)
                )
        decision = self.driver.report(trial.trial_id, arrival.report)
        if decision is Decision.CONTINUE:
            self._send(trial, arrival.legs, set_up=0.0)


Search = Callable[[Setting], list[Event]]
"""Replays one search: its measurements in order of time."""
