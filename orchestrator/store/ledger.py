"""The ledger: what the sweep knows, folded from the journal's events.

One writer, the driver. Everything else (scheduler, sampler, tracker, table, progress) reads it.
"""

import threading
import time
from bisect import insort
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from itertools import islice
from sys import intern
from typing import Any

from analysis.frontier import Frontier, FrontierPoint
from analysis.shrinkage import Shrinkage
from orchestrator.store.journal import Journal
from search_spaces.recipe import Recipe
from trainables.measurement import Measurement, Report


class TrialState(StrEnum):
    """Where a trial stands."""

    RUNNING = "running"
    """Suggested and not finished; after a driver's death it goes on from its last rung."""
    PAUSED = "paused"
    """Left its worker at a rung and waits there until it may go on."""
    COMPLETE = "complete"
    """Spent the compute it aimed at."""
    HALVED = "halved"
    """Stopped at a rung because others were better at equal compute."""
    INFEASIBLE = "infeasible"
    """Its recipe cannot be realised."""
    DIVERGED = "diverged"
    """Its loss stopped being finite, or its error stayed at chance where others learnt."""
    FAILED = "failed"
    """Raised or was lost more often than it may be retried."""

    @property
    def finished(self) -> bool:
        return self not in (TrialState.RUNNING, TrialState.PAUSED)


@dataclass(frozen=True, kw_only=True)
class TrialRecord:
    """Everything known of one trial."""

    trial_id: str
    """Unique within the sweep: its number and its recipe's id."""
    number: int
    """Order of suggestion, from 0."""
    recipe: Recipe
    seed: int
    """Derived from (sweep seed, number), that of the trial that it continues if it does."""
    state: TrialState = TrialState.RUNNING
    reason: str | None = None
    """Why it is infeasible, diverged, failed or halved."""
    attempt: int = 0
    """How often it was restarted after a failure or a driver's death."""
    measurements: tuple[Measurement, ...] = ()
    """Its curve: one measurement a rung, in order of compute."""
    executed_flops: float = 0.0
    """Training FLOPs the sweep paid for it, repeats included."""
    suggested_at: float
    """Unix seconds."""
    finished_at: float | None = None
    params: Mapping[str, Any] = field(default_factory=dict)
    """The sampler's parameters that gave the recipe."""
    distributions: Mapping[str, str] = field(default_factory=dict)
    """Their distributions, as JSON."""
    continues: str | None = None
    """The trial with the same recipe but for a lower aim whose seed this one shares, and whose
    shared steps it goes on from where that one keeps them."""
    confirms: str | None = None
    """The finished trial whose recipe this one runs once more, with a seed of its own, as far as
    that one went."""
    start: int | None = None
    """The place among the recipes of the sweep's start, from 0, of the one that it tries."""
    resumed_at: int | None = None
    """The rung from which it went on after it was paused last."""
    needs_flops: float | None = None
    """The least training FLOPs with which an infeasible recipe could take a step; None where they
    are not known, or nothing helps."""

    @property
    def finished(self) -> bool:
        return self.state.finished


@dataclass(frozen=True, kw_only=True)
class Reading:
    """The driver's own knowledge of a measurement, besides what the trial reported."""

    attempt: int
    sweep_flops: float
    """Training FLOPs the sweep had executed by then, this measurement's included."""
    measured_at: float
    """Unix seconds."""


class Ledger:
    """The sweep's state. Every change is in the journal before it is here.

    Reading is safe from any thread; only the driver's thread changes it.
    """

    def __init__(self, journal: Journal, *, clock: Callable[[], float] = time.time) -> None:
        self._journal = journal
        self._clock = clock
        self._lock = threading.Lock()
        self._trials: dict[str, TrialRecord] = {}
        self._states: Counter[TrialState] = Counter()
        self._unfinished: dict[str, None] = {}
        self._finished: list[str] = []
        """Trial ids in the order in which the trials finished."""
        self._readings: dict[tuple[str, int], Reading] = {}
        self._errors_at: dict[int, dict[str, float]] = {}
        self._runs: dict[str, list[str]] = {}
        """Ids of the trials of each recipe, by its id."""
        self._validation_images: int | None = None
        self._shrinkage: dict[int, tuple[int, Shrinkage]] = {}
        """The expectation at each rung, and how many errors had been measured there then."""
        self._ranked: dict[int, list[float]] = {}
        """The errors measured at each rung, ascending."""
        self._ranked_before: dict[int, list[float]] = {}
        """The same, as it was when those that run began; only at rungs that were asked for."""
        self._measured_before: dict[int, int] = {}
        """How many trials had been measured at each rung then."""
        self._heard_of = True
        self._sweep_flops = 0.0
        self._measured_frontier = Frontier()
        self._frontier: Frontier | None = Frontier()
        """None where it must be made anew of `_measured_frontier`."""
        self._elapsed_before, self._session = 0.0, (0.0, 0.0)
        self._sweep_id: str | None = None
        self._start: tuple[Mapping[str, Any], ...] | None = None
        self._revision = 0
        for event in journal.events():
            self._apply(event)

    @property
    def sweep_id(self) -> str | None:
        """Names the sweep; None before it was first opened."""
        return self._sweep_id

    @property
    def start(self) -> tuple[Mapping[str, Any], ...] | None:
        """The recipes to try first, as `started_with` was told them; None before it was."""
        return self._start

    @property
    def revision(self) -> int:
        """Grows with every event; equal revisions mean equal state."""
        return self._revision

    @property
    def sweep_flops(self) -> float:
        """Sums the training FLOPs that all trials executed, stopped and failed ones included."""
        return self._sweep_flops

    @property
    def frontier(self) -> Frontier:
        """Holds the non-dominated measurements so far, with what is expected of them."""
        with self._lock:
            return self._expected_frontier()

    @property
    def measured_frontier(self) -> Frontier:
        """Holds the points of `frontier` without what is expected of them, ready at once."""
        return self._measured_frontier

    @property
    def heard_of(self) -> bool:
        """Whether anything became of the trials that run since they began after nothing had run."""
        return self._heard_of

    @property
    def elapsed_seconds(self) -> float:
        """Sums the wall time of all the sweep's drivers, up to the last event."""
        return self._elapsed_before + self._session[1] - self._session[0]

    def trials(self) -> tuple[TrialRecord, ...]:
        """Returns all trials in order of suggestion."""
        with self._lock:
            return tuple(self._trials.values())

    def __len__(self) -> int:
        """Returns how many trials there are, which is the number of the next one."""
        return len(self._trials)

    def trial(self, trial_id: str) -> TrialRecord:
        return self._trials[trial_id]

    def unfinished(self) -> tuple[TrialRecord, ...]:
        """Returns the trials that run or are paused, in order of suggestion."""
        with self._lock:
            trials = [self._trials[trial_id] for trial_id in self._unfinished]
        return tuple(sorted(trials, key=lambda trial: trial.number))

    def finished_since(self, count: int) -> tuple[TrialRecord, ...]:
        """Returns the trials that finished after the first `count` that did, in that order."""
        with self._lock:
            return tuple(self._trials[trial_id] for trial_id in self._finished[count:])

    def states(self) -> Mapping[TrialState, int]:
        """Counts the trials by state; a state that no trial has counts 0."""
        with self._lock:
            return Counter(self._states)

    def errors_at(self, rung: int) -> Mapping[str, float]:
        """Returns the validation error by trial id of all trials measured at `rung`."""
        return self._errors_at.get(rung, {})

    def ranked_errors(self, rung: int) -> Sequence[float]:
        """Returns the errors measured at `rung`, ascending; it grows with the next one."""
        return self._ranked.get(rung, ())

    def ranked_errors_before(self, rung: int) -> Sequence[float]:
        """Returns `ranked_errors` as they were when those that run began after nothing had run."""
        if rung not in self._ranked_before:
            errors = islice(self.errors_at(rung).values(), self._measured_before.get(rung, 0))
            self._ranked_before[rung] = sorted(errors)
        return self._ranked_before[rung]

    def trials_and_frontier(self) -> tuple[tuple[TrialRecord, ...], Frontier]:
        """Returns all trials and the frontier as of one moment."""
        with self._lock:
            return tuple(self._trials.values()), self._expected_frontier()

    def expected(
        self, trial: TrialRecord, measurement: Measurement
    ) -> tuple[float, float | None] | None:
        """Returns the error to expect of what was measured, and that of the recipe's other runs.

        The latter is None where there are none; all is where it is not known how many images the
        error is a share of, because no driver of this version has opened the sweep yet.
        """
        with self._lock:
            return self._expected(trial.trial_id, trial.recipe.recipe_id, measurement)

    def readings(self) -> tuple[tuple[TrialRecord, Measurement, Reading], ...]:
        """Returns every measurement with its trial and the driver's reading of it."""
        with self._lock:
            return tuple(
                (trial, measurement, self._readings[trial.trial_id, measurement.rung])
                for trial in self._trials.values()
                for measurement in trial.measurements
            )

    def open(
        self,
        *,
        sweep_id: str,
        search: Mapping[str, str] | None = None,
        validation_images: int | None = None,
        identity: Mapping[str, Any] | None = None,
    ) -> None:
        """A driver begins, or goes on with, the sweep.

        `search` names its sampler and scheduler; errors are shares of so many images; `identity`
        tells the content of the task and the weights, in JSON types.
        """
        opened = {"event": "opened", "sweep_id": sweep_id, "validation_images": validation_images}
        known = {"search": search, "identity": identity}
        self._record(opened | {key: dict(value) for key, value in known.items() if value})

    def started_with(self, recipes: Sequence[Mapping[str, Any]]) -> None:
        """Keeps the recipes to try first, in JSON types, for as long as the sweep lives."""
        self._record({"event": "started_with", "recipes": list(recipes)})

    def suggested(self, trial: TrialRecord) -> None:
        """A recipe is drawn; from here on it is run until it is finished."""
        self._record(
            {
                "event": "suggested",
                "trial_id": trial.trial_id,
                "number": trial.number,
                "recipe": trial.recipe.to_dict(),
                "seed": trial.seed,
                "params": dict(trial.params),
                "distributions": dict(trial.distributions),
                "continues": trial.continues,
                "confirms": trial.confirms,
                "start": trial.start,
            }
        )

    def restarted(self, trial_id: str, *, reason: str) -> None:
        """A trial is set up again after a failure or after a driver's death."""
        self._record({"event": "restarted", "trial_id": trial_id, "reason": reason})

    def measured(self, trial_id: str, report: Report) -> None:
        """A trial reports a rung. One that is known already changes nothing and costs nothing.

        The report's times are kept in the journal only: they tell where time went between trials.
        Raises `ValueError` for a report without a measurement.
        """
        measurement = report.measurement
        if measurement is None:
            raise ValueError(f"Trial {trial_id} reports no measurement; there is none to record.")
        if (trial_id, measurement.rung) not in self._readings:
            self._record(
                {
                    "event": "measured",
                    "trial_id": trial_id,
                    "measurement": measurement.to_dict(),
                    "set_up_at": report.set_up_at,
                    "reported_at": report.reported_at,
                }
            )

    def paused(self, trial_id: str) -> None:
        """A trial left its worker at its newest rung."""
        self._record({"event": "paused", "trial_id": trial_id})

    def resumed(self, *trial_ids: str) -> None:
        """Paused trials go on together, which is no new attempt."""
        self._record({"event": "resumed", "trial_ids": list(trial_ids)})

    def finished(
        self,
        trial_id: str,
        state: TrialState,
        *,
        reason: str | None = None,
        unmeasured_flops: float = 0.0,
        needs_flops: float | None = None,
    ) -> None:
        """A trial is over; `unmeasured_flops` is what it executed after its last measurement."""
        self._record(
            {
                "event": "finished",
                "trial_id": trial_id,
                "state": state.value,
                "reason": reason,
                "unmeasured_flops": unmeasured_flops,
                "needs_flops": needs_flops,
            }
        )

    def released(self, trial_id: str) -> None:
        """The steps that a finished trial kept for others are gone, for good."""
        self._record({"event": "released", "trial_id": trial_id})

    def tested(self, trial_id: str, rung: int, *, test_error: float) -> None:
        """A frontier point was measured on the test split."""
        self._record(
            {"event": "tested", "trial_id": trial_id, "rung": rung, "test_error": test_error}
        )

    def _record(self, event: dict[str, Any]) -> None:
        event["time"] = self._clock()
        self._journal.append(event)
        self._apply(event)

    def _apply(self, event: Mapping[str, Any]) -> None:
        with self._lock:
            _FOLDS[event["event"]](self, event)
            if event["event"] != "opened":
                self._session = (self._session[0], event["time"])
            self._revision += 1

    def _fold_opened(self, event: Mapping[str, Any]) -> None:
        self._elapsed_before = self.elapsed_seconds
        self._session = (event["time"], event["time"])
        self._sweep_id = event["sweep_id"]
        self._validation_images = event.get("validation_images")  # older journals have none
        self._shrinkage.clear()
        self._frontier = None

    def _keep(self, trial: TrialRecord) -> None:
        """Puts a trial's record in place of the one that was there, if any was."""
        before = self._trials.get(trial.trial_id)
        if before is not None:
            self._states[before.state] -= 1
        self._states[trial.state] += 1
        self._trials[trial.trial_id] = trial
        if trial.finished:
            self._unfinished.pop(trial.trial_id, None)
        else:
            self._unfinished[trial.trial_id] = None

    def _fold_started_with(self, event: Mapping[str, Any]) -> None:
        self._start = tuple(event["recipes"])

    def _fold_suggested(self, event: Mapping[str, Any]) -> None:
        self._note_what_was_before()
        recipe = Recipe.from_dict(event["recipe"])
        self._runs.setdefault(recipe.recipe_id, []).append(event["trial_id"])
        self._keep(
            TrialRecord(
                trial_id=event["trial_id"],
                number=event["number"],
                recipe=recipe,
                seed=event["seed"],
                params={intern(name): value for name, value in event["params"].items()},
                distributions={  # most trials have the same ones
                    intern(name): intern(text) for name, text in event["distributions"].items()
                },
                continues=event.get("continues"),  # older journals have none of these
                confirms=event.get("confirms"),
                start=event.get("start"),
                suggested_at=event["time"],
            )
        )

    def _fold_restarted(self, event: Mapping[str, Any]) -> None:
        trial = self._trials[event["trial_id"]]
        self._heard_of = True
        self._keep(replace(trial, attempt=trial.attempt + 1))

    def _fold_paused(self, event: Mapping[str, Any]) -> None:
        trial = self._trials[event["trial_id"]]
        self._keep(replace(trial, state=TrialState.PAUSED))

    def _fold_resumed(self, event: Mapping[str, Any]) -> None:
        self._note_what_was_before()
        # older journals have an event for each trial
        for trial_id in event.get("trial_ids") or [event["trial_id"]]:
            trial = self._trials[trial_id]
            at = trial.measurements[-1].rung if trial.measurements else None
            self._keep(replace(trial, state=TrialState.RUNNING, resumed_at=at))

    def _note_what_was_before(self) -> None:
        """Keeps what was measured before a trial begins, unless others run already."""
        if not self._states[TrialState.RUNNING]:
            self._heard_of = False
            self._ranked_before.clear()
            self._measured_before = {rung: len(known) for rung, known in self._errors_at.items()}

    def _fold_measured(self, event: Mapping[str, Any]) -> None:
        trial = self._trials[event["trial_id"]]
        measurement = Measurement.from_dict(event["measurement"])
        self._heard_of = True
        self._sweep_flops += measurement.executed_flops
        self._readings[trial.trial_id, measurement.rung] = Reading(
            attempt=trial.attempt, sweep_flops=self._sweep_flops, measured_at=event["time"]
        )
        curve = sorted((*trial.measurements, measurement), key=lambda m: m.rung)
        trial = replace(
            trial,
            measurements=tuple(curve),
            executed_flops=trial.executed_flops + measurement.executed_flops,
        )
        self._keep(trial)
        self._errors_at.setdefault(measurement.rung, {})[trial.trial_id] = measurement.val_error
        insort(self._ranked.setdefault(measurement.rung, []), measurement.val_error)
        if not self._is_beaten(measurement):
            point = _point(trial, measurement)
            self._measured_frontier = self._measured_frontier.merge([point])
        self._frontier = None

    def _is_beaten(self, measurement: Measurement) -> bool:
        """Tells whether a point of the frontier is better in compute or error and no worse in the
        other."""
        best = self._measured_frontier.best_under(measurement.train_flops)
        if best is None:
            return False
        if best.train_flops < measurement.train_flops:
            return best.val_error <= measurement.val_error
        return best.val_error < measurement.val_error

    def _expected_frontier(self) -> Frontier:
        if self._frontier is None:
            points = tuple(map(self._expectable, self._measured_frontier.points))
            self._frontier = Frontier(points).expected()
        return self._frontier

    def _expectable(self, point: FrontierPoint) -> FrontierPoint:
        """Returns the point with what is expected of it."""
        recipe_id = self._trials[point.trial_id].recipe.recipe_id
        expected = self._expected(point.trial_id, recipe_id, point.measurement)
        if expected is None:
            return point
        return replace(point, expected_error=expected[0], confirming_error=expected[1])

    def _expected(
        self, trial_id: str, recipe_id: str, measurement: Measurement
    ) -> tuple[float, float | None] | None:
        if self._validation_images is None:
            return None
        at = self._errors_at[measurement.rung]
        others = [at[run] for run in self._runs[recipe_id] if run in at and run != trial_id]
        count, shrinkage = self._shrinkage.get(measurement.rung, (0, None))
        if shrinkage is None or count != len(at):
            shrinkage = Shrinkage(at.values(), images=self._validation_images)
            self._shrinkage[measurement.rung] = len(at), shrinkage
        confirming = sum(others) / len(others) if others else None
        return shrinkage.expected(measurement.val_error, others=others), confirming

    def _fold_finished(self, event: Mapping[str, Any]) -> None:
        trial = self._trials[event["trial_id"]]
        self._heard_of = True
        self._sweep_flops += event["unmeasured_flops"]
        if not trial.finished:
            self._finished.append(trial.trial_id)
        self._keep(
            replace(
                trial,
                state=TrialState(event["state"]),
                reason=event["reason"],
                needs_flops=event.get("needs_flops"),
                finished_at=event["time"],
                executed_flops=trial.executed_flops + event["unmeasured_flops"],
            )
        )

    def _fold_released(self, event: Mapping[str, Any]) -> None:
        trial = self._trials[event["trial_id"]]
        *before, last = trial.measurements
        curve = (*before, replace(last, trunk_flops=0.0))
        self._trials[trial.trial_id] = replace(trial, measurements=curve)

    def _fold_tested(self, event: Mapping[str, Any]) -> None:
        trial = self._trials[event["trial_id"]]
        curve = tuple(
            replace(m, test_error=event["test_error"]) if m.rung == event["rung"] else m
            for m in trial.measurements
        )
        self._keep(replace(trial, measurements=curve))
        self._measured_frontier = Frontier(
            tuple(
                replace(
                    point, measurement=replace(point.measurement, test_error=event["test_error"])
                )
                if (point.trial_id, point.rung) == (event["trial_id"], event["rung"])
                else point
                for point in self._measured_frontier.points
            )
        )
        self._frontier = None


_FOLDS: dict[str, Callable[[Ledger, Mapping[str, Any]], None]] = {
    "opened": Ledger._fold_opened,
    "started_with": Ledger._fold_started_with,
    "suggested": Ledger._fold_suggested,
    "restarted": Ledger._fold_restarted,
    "paused": Ledger._fold_paused,
    "resumed": Ledger._fold_resumed,
    "measured": Ledger._fold_measured,
    "finished": Ledger._fold_finished,
    "released": Ledger._fold_released,
    "tested": Ledger._fold_tested,
}


def _point(trial: TrialRecord, measurement: Measurement) -> FrontierPoint:
    return FrontierPoint(
        trial_id=trial.trial_id,
        number=trial.number,
        measurement=measurement,
        recipe=trial.recipe.flat(),
    )
