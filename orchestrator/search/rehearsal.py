"""A rehearsal: the driver's own decisions over trials that cost what they would and learn nothing.

It tells in seconds what a budget buys.
"""

import heapq
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import Any

from orchestrator.search.config import Budget
from orchestrator.search.driver import Driver, Idle
from orchestrator.search.strategy import Decision, Strategy
from orchestrator.store.journal import Event, Journal
from orchestrator.store.ledger import Ledger, TrialRecord
from orchestrator.store.retention import CheckpointKeeper
from trainables.learning.schedules import steps_before_decay
from trainables.measurement import Measurement, Outcome, Report

MOST_TRIALS = 2000
"""Trials after which a rehearsal ends although the budget holds more."""
GAIN = 0.9
"""The error of a trial at a rung, as a share of its error at the rung before."""
_STEPS = 1000
"""Steps by which the share that a schedule shares with longer ones is told."""


@dataclass(frozen=True, kw_only=True)
class Pace:
    """The cost of a trial besides its training FLOPs."""

    flops_per_second: float
    """FLOPs that a trial executes in a second."""
    eval_flops: float
    """FLOPs of a pass over the validation images."""
    set_up_seconds: float
    """Seconds before its first step."""


@dataclass(kw_only=True)
class RungBill:
    """The cost of the trials that aim at a rung."""

    begun: int = 0
    """Recipes that begin there."""
    raised: int = 0
    """Recipes that come from a lower rung."""
    confirming: int = 0
    """Recipes of the frontier that are run again with another seed."""
    train_flops: float = 0.0
    eval_flops: float = 0.0
    worker_seconds: float = 0.0
    """Seconds of one worker after the other."""

    @property
    def trials(self) -> int:
        return self.begun + self.raised + self.confirming


@dataclass(frozen=True, kw_only=True)
class Outlook:
    """The purchase of a budget."""

    levels: tuple[float, ...]
    """The rungs' training FLOPs."""
    rungs: tuple[RungBill, ...]
    """The bill of each."""
    workers: int
    """Trials side by side."""
    flops_per_second: float
    """The pace of each, as given."""
    wall_seconds: float
    whole: bool
    """Whether the budget was spent; else it buys more than was rehearsed."""

    @property
    def total(self) -> RungBill:
        """The bill of all rungs."""
        return RungBill(
            begun=sum(rung.begun for rung in self.rungs),
            raised=sum(rung.raised for rung in self.rungs),
            confirming=sum(rung.confirming for rung in self.rungs),
            train_flops=sum(rung.train_flops for rung in self.rungs),
            eval_flops=sum(rung.eval_flops for rung in self.rungs),
            worker_seconds=sum(rung.worker_seconds for rung in self.rungs),
        )


class Rehearsal:
    """Runs a strategy through the product's own driver, on a clock of its own."""

    def __init__(
        self,
        strategy: Strategy,
        *,
        budget: Budget,
        levels: tuple[float, ...],
        pace: Pace,
        workers: int,
        seed: int,
        confirm: float = 0.0,
    ) -> None:
        """`confirm` is the share of the budget that may confirm the frontier, as the driver's."""
        self._strategy = strategy
        self._budget = budget
        self._levels = levels
        self._pace = pace
        self._workers = workers
        self._seed = seed
        self._confirm = confirm
        self._now = 0.0
        self.ledger = Ledger(_NoJournal(), clock=lambda: self._now)
        self.ledger.open(sweep_id="rehearsal")
        self._bills = tuple(RungBill() for _ in levels)
        self._arrivals: list[_Arrival] = []
        self._order = 0

    def run(self, *, most_trials: int = MOST_TRIALS) -> Outlook:
        """Returns what the budget buys, up to so many trials."""
        with TemporaryDirectory() as folder:
            driver = Driver(
                ledger=self.ledger,
                strategy=self._strategy,
                keeper=CheckpointKeeper(self.ledger, Path(folder).as_uri()),
                budget=self._budget,
                levels=self._levels,
                seed=self._seed,
                confirm=self._confirm,
                clock=lambda: self._now,
            )
            while len(self.ledger) < most_trials:
                self._fill(driver)
                if not self._arrivals:
                    break
                self._step(driver)
        return Outlook(
            levels=self._levels,
            rungs=self._bills,
            workers=self._workers,
            flops_per_second=self._pace.flops_per_second,
            wall_seconds=self._now,
            whole=len(self.ledger) < most_trials,
        )

    def _fill(self, driver: Driver) -> None:
        """Hands a trial to each free worker."""
        while len(self._arrivals) < self._workers:
            trial = driver.next_trial()
            if isinstance(trial, Idle):
                return
            if not trial.measurements:
                self._count(trial)
            self._send(trial, self._reports(trial), seconds=self._pace.set_up_seconds)

    def _step(self, driver: Driver) -> None:
        """Lets the next report arrive."""
        arrival = heapq.heappop(self._arrivals)
        self._now = max(self._now, arrival.seconds)
        if driver.report(arrival.trial.trial_id, arrival.report) is Decision.CONTINUE:
            self._send(arrival.trial, arrival.ahead)

    def _send(self, trial: TrialRecord, reports: Iterator[Report], *, seconds: float = 0.0) -> None:
        """Lets a trial run to its next report, which is `seconds` away besides its work."""
        report = next(reports)
        assert report.measurement is not None
        bill, known = self._bill(trial), {m.rung for m in trial.measurements}
        if report.measurement.rung not in known:
            flops = report.measurement.executed_flops + self._pace.eval_flops
            seconds += flops / self._pace.flops_per_second
            bill.train_flops += report.measurement.executed_flops
            bill.eval_flops += self._pace.eval_flops
        bill.worker_seconds += seconds
        self._order += 1
        heapq.heappush(
            self._arrivals,
            _Arrival(self._now + seconds, self._order, trial=trial, report=report, ahead=reports),
        )

    def _count(self, trial: TrialRecord) -> None:
        """Counts a trial that starts."""
        bill = self._bill(trial)
        if trial.confirms is not None:
            bill.confirming += 1
        elif trial.continues is not None:
            bill.raised += 1
        else:
            bill.begun += 1

    def _bill(self, trial: TrialRecord) -> RungBill:
        aims = [n for n, level in enumerate(self._levels) if level <= trial.recipe.target_flops]
        return self._bills[max(aims, default=0)]

    def _reports(self, trial: TrialRecord) -> Iterator[Report]:
        """Yields what the trial reports from where it is: a paused one says once more where."""
        if trial.measurements:
            yield Report(outcome=Outcome.RUNNING, measurement=trial.measurements[-1])
        done = trial.measurements[-1].train_flops if trial.measurements else self._shared(trial)
        ends = [level for level in self._levels if done < level < trial.recipe.target_flops]
        passes = len(trial.measurements)
        for flops in (*ends, trial.recipe.target_flops):
            over = flops == trial.recipe.target_flops
            passes += 1
            yield Report(
                outcome=Outcome.COMPLETE if over else Outcome.RUNNING,
                measurement=self._measurement(trial, flops, done=done, passes=passes, over=over),
            )
            done = flops

    def _shared(self, trial: TrialRecord) -> float:
        """The training FLOPs of a new trial that the one which it continues has executed."""
        if trial.continues is None:
            return 0.0
        before = self.ledger.trial(trial.continues).measurements
        return before[-1].trunk_flops if before else 0.0

    def _measurement(
        self, trial: TrialRecord, flops: float, *, done: float, passes: int, over: bool
    ) -> Measurement:
        rung = max((n for n, level in enumerate(self._levels) if level <= flops), default=0)
        steps = steps_before_decay(trial.recipe.schedule, total_steps=_STEPS)
        drawn = trial if trial.confirms is None else self.ledger.trial(trial.confirms)
        error = Random(drawn.seed).random() * GAIN**rung
        return Measurement(
            rung=rung,
            train_flops=flops,
            executed_flops=flops - done,
            eval_flops=passes * self._pace.eval_flops,
            trunk_flops=flops * steps / _STEPS if over else 0.0,
            inference_flops=0.0,
            params=0,
            updated_params=0,
            val_error=error,
            val_loss=error,
            train_seconds=0.0,
            images_seen=0,
        )


@dataclass(order=True)
class _Arrival:
    """A report that arrives at a time; the first sent of equals comes first."""

    seconds: float
    order: int
    trial: TrialRecord = field(compare=False)
    report: Report = field(compare=False)
    ahead: Iterator[Report] = field(compare=False)
    """The reports that follow."""


class _NoJournal(Journal):
    """Keeps nothing."""

    def __init__(self) -> None:
        """Opens no file."""

    def events(self) -> Iterator[Event]:
        return iter(())

    def append(self, event: Mapping[str, Any]) -> None:
        """Forgets the event."""

    def close(self) -> None:
        """Nothing is open."""
