"""The driver: every decision of a sweep, and no process.

Tune's adapters, the bare loop of the benchmark and the tests drive it alike: they ask for the
next trial, hand in what trials report, and do as they are told.
"""

import time
from collections import Counter, deque
from collections.abc import Callable
from enum import StrEnum

from orchestrator.search.config import Budget
from orchestrator.search.strategy import GO_ON, Decision, Standing, Strategy, Verdict
from orchestrator.store.ledger import Ledger, TrialRecord, TrialState
from orchestrator.store.retention import CheckpointKeeper
from trainables.measurement import Measurement, Outcome, Report
from trainables.seeds import derive_seed

HOPELESS_FAILURES = 8
"""Failed trials after which a sweep without a single measurement gives up."""


class Idle(StrEnum):
    """Why there is no next trial."""

    WAIT = "wait"
    """Running trials decide whether there is one."""
    FINISHED = "finished"
    """The budget is spent, or nothing works."""


class Driver:
    """Draws recipes, records what comes back, does as its judges say, keeps the budget."""

    def __init__(
        self,
        *,
        ledger: Ledger,
        strategy: Strategy,
        keeper: CheckpointKeeper,
        budget: Budget,
        levels: tuple[float, ...],
        seed: int,
        max_failures: int = 0,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """`max_failures`: how often a trial that raised or was lost is set up again."""
        self._ledger = ledger
        self._strategy = strategy
        self._generation = strategy.generation
        self._keeper = keeper
        self._budget = budget
        self._levels = levels
        self._seed = seed
        self._max_failures = max_failures
        self._clock = clock
        self._started = clock() - ledger.elapsed_seconds
        trials = ledger.trials()
        self._paused = {t.trial_id: None for t in trials if t.state is TrialState.PAUSED}
        unfinished = [t.trial_id for t in trials if t.state is TrialState.RUNNING]
        self._waiting = deque(unfinished)
        self._interrupted = dict.fromkeys(unfinished, "the driver was started again")
        self._resumed_at: dict[str, int] = {}
        """Rung at which each trial was paused that has been handed out again."""
        self._failures: Counter[str] = Counter()
        self._live: set[str] = set()
        self._torn_generation = self._is_generation_torn()

    @property
    def out_of_time(self) -> bool:
        """Whether the wall time is spent."""
        limit = self._budget.wall_time
        return limit is not None and self._clock() - self._started >= limit

    @property
    def hopeless(self) -> bool:
        """Whether many trials failed and none was ever measured: no recipe is to blame then."""
        trials = self._ledger.trials()
        failed = sum(trial.state is TrialState.FAILED for trial in trials)
        return failed >= HOPELESS_FAILURES and not any(trial.measurements for trial in trials)

    def next_trial(self) -> TrialRecord | Idle:
        """The trial to start now: one that was interrupted or paused, else a newly drawn one."""
        if self.out_of_time or self.hopeless:
            return Idle.FINISHED
        if self._torn_generation:
            self._torn_generation = False
            self._draw_rest_of_generation()
        if not self._waiting:
            self._resume()
        if not self._waiting:
            idle = self._draw()
            if idle is not None:
                return idle
        trial_id = self._waiting.popleft()
        self._live.add(trial_id)
        if reason := self._interrupted.pop(trial_id, None):
            self._ledger.restarted(trial_id, reason=reason)
        return self._ledger.trial(trial_id)

    def report(self, trial_id: str, report: Report) -> Decision:
        """Records what a trial reports; tells whether it goes on to its next rung."""
        if report.measurement is not None:
            self._ledger.measured(trial_id, report)
            self._keeper.measured(trial_id, report.measurement.rung)
        decision = self._decide(trial_id, report)
        self._keeper.tidy()
        return decision

    def failed(self, trial_id: str, *, reason: str, preempted: bool = False) -> None:
        """Takes back a trial that raised or was lost: it is the next to start, or has failed.

        Being preempted, with a node whose end the cluster knew of, is no failure of the trial's
        and may happen to it any number of times.
        """
        self._failures[trial_id] += not preempted
        if self._failures[trial_id] > self._max_failures:
            self._finish(trial_id, TrialState.FAILED, reason=reason)
            self._keeper.tidy()
            return
        self._live.discard(trial_id)
        self._interrupted[trial_id] = reason
        self._waiting.appendleft(trial_id)

    def _decide(self, trial_id: str, report: Report) -> Decision:
        measurement, over = report.measurement, report.outcome is not Outcome.RUNNING
        verdict = GO_ON
        if measurement is not None and self._resumed_at.get(trial_id) != measurement.rung:
            verdict = self._judge(trial_id, measurement, over=over)
        if verdict.decision is Decision.STOP:
            assert verdict.state is not None  # a verdict to stop has one
            self._finish(trial_id, verdict.state, reason=verdict.reason)
            return Decision.STOP
        if over:
            self._finish(
                trial_id,
                TrialState(report.outcome.value),
                reason=report.reason,
                unmeasured_flops=report.unmeasured_flops,
            )
            return Decision.STOP
        if verdict.decision is Decision.PAUSE:
            self._ledger.paused(trial_id)
            self._paused[trial_id] = None
        if verdict.decision is Decision.PAUSE or self.out_of_time:
            self._live.discard(trial_id)
            return Decision.PAUSE
        return Decision.CONTINUE

    def _judge(self, trial_id: str, measurement: Measurement, *, over: bool) -> Verdict:
        """The first verdict on a trial that is not to go on, else to go on."""
        standing = Standing(
            trial=self._ledger.trial(trial_id),
            measurement=measurement,
            peers=self._peers(trial_id, measurement.rung),
            over=over,
        )
        judges = (*self._strategy.judges, self._strategy.scheduler)
        verdicts = (judge.judge(standing) for judge in judges)
        return next((v for v in verdicts if v.decision is not Decision.CONTINUE), GO_ON)

    def _finish(
        self,
        trial_id: str,
        state: TrialState,
        *,
        reason: str | None,
        unmeasured_flops: float = 0.0,
    ) -> None:
        self._ledger.finished(trial_id, state, reason=reason, unmeasured_flops=unmeasured_flops)
        self._live.discard(trial_id)
        self._strategy.sampler.tell(self._ledger.trial(trial_id))

    def _peers(self, trial_id: str, rung: int) -> list[float]:
        """The errors at a rung that the trial is compared with, its own included."""
        errors = self._ledger.errors_at(rung)
        if not self._generation:
            return list(errors.values())
        first = self._ledger.trial(trial_id).number // self._generation * self._generation
        return [
            error
            for peer, error in errors.items()
            if peer == trial_id or self._ledger.trial(peer).number < first
        ]

    def _resume(self) -> None:
        """Queues the paused trial that goes on now; in generations all that do, once none runs."""
        if self._generation and self._live:
            return
        while self._paused:
            trials = [self._ledger.trial(trial_id) for trial_id in self._paused]
            room = self._uncommitted_flops()
            affordable = [t for t in trials if room is None or _unspent(t) <= room]
            trial = self._strategy.scheduler.resume(affordable, self._ledger.errors_at)
            if trial is None:
                return
            del self._paused[trial.trial_id]
            self._resumed_at[trial.trial_id] = trial.measurements[-1].rung
            self._ledger.resumed(trial.trial_id)
            self._waiting.append(trial.trial_id)
            if not self._generation:
                return

    def _draw(self) -> Idle | None:
        """Queues the next recipe, or the next generation; tells why it could not."""
        if self._generation and self._live:
            return Idle.WAIT
        drawn = self._draw_one()
        if drawn is not None:
            return drawn
        if self._generation:
            self._draw_rest_of_generation()
        return None

    def _is_generation_torn(self) -> bool:
        """Whether a driver died while it drew the last generation.

        It must be drawn whole before any of it runs. One of which a trial has run was drawn as
        far as the budget went then; if that was raised since, the rest sees what came of it.
        """
        if not self._generation:
            return False
        trials = self._ledger.trials()
        begun = len(trials) % self._generation
        return begun > 0 and not any(
            trial.measurements or trial.finished or trial.attempt for trial in trials[-begun:]
        )

    def _draw_rest_of_generation(self) -> None:
        assert self._generation is not None
        while len(self._ledger.trials()) % self._generation and self._draw_one() is None:
            pass

    def _draw_one(self) -> Idle | None:
        number = len(self._ledger.trials())
        if self._budget.trials is not None and number >= self._budget.trials:
            return self._idle()
        room = self._uncommitted_flops()
        if room is not None and room < self._levels[0]:
            return self._idle()
        suggestion = self._strategy.sampler.ask(number, max_target_flops=room)
        if suggestion is None:  # nothing in the space is that cheap
            return self._idle()
        trial = TrialRecord(
            trial_id=f"{number:05d}-{suggestion.recipe.recipe_id}",
            number=number,
            recipe=suggestion.recipe,
            seed=derive_seed(self._seed, "trial", number),
            suggested_at=self._clock(),
            params=suggestion.params,
            distributions=suggestion.distributions,
        )
        self._ledger.suggested(trial)
        self._waiting.append(trial.trial_id)
        return None

    def _idle(self) -> Idle:
        """Nothing to draw now; a trial that still runs may free compute, or be lost and wait."""
        return Idle.WAIT if self._live or self._waiting else Idle.FINISHED

    def _uncommitted_flops(self) -> float | None:
        """The FLOPs left of the compute budget if every running trial spends all it aims at.

        A trial's compute never exceeds its target, so a sweep never exceeds its budget, but by
        what trials repeat after failures.
        """
        if self._budget.sweep_flops is None:
            return None
        open_trials = (self._ledger.trial(t) for t in (*self._live, *self._waiting))
        committed = sum(_unspent(trial) for trial in open_trials)
        return self._budget.sweep_flops - self._ledger.sweep_flops - committed


def _unspent(trial: TrialRecord) -> float:
    """The FLOPs that the trial may still spend."""
    spent = trial.measurements[-1].train_flops if trial.measurements else 0.0
    return max(0.0, trial.recipe.target_flops - spent)
