"""The driver: every decision of a sweep, and no process.

Tune's adapters, the bare loop of the benchmark and the tests drive it alike: they ask for the
next trial, hand in what trials report, and do as they are told.
"""

import time
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

from orchestrator.search.chance import Chance
from orchestrator.search.halving import Decision, Halving
from orchestrator.search.sampler import FrontierSampler
from orchestrator.store.ledger import Ledger, TrialRecord, TrialState
from orchestrator.store.retention import CheckpointKeeper
from trainables.measurement import Measurement, Outcome
from trainables.seeds import derive_seed

HOPELESS_FAILURES = 8
"""Failed trials after which a sweep without a single measurement gives up."""


class Idle(StrEnum):
    """Why there is no next trial."""

    WAIT = "wait"
    """Running trials decide whether there is one."""
    FINISHED = "finished"
    """The budget is spent, or nothing works."""


@dataclass(frozen=True, kw_only=True)
class Budget:
    """When to stop; None means without limit."""

    trials: int | None = None
    sweep_flops: float | None = None
    wall_seconds: float | None = None


class Driver:
    """Draws recipes, records what comes back, races trials at equal compute, keeps the budget."""

    def __init__(
        self,
        *,
        ledger: Ledger,
        sampler: FrontierSampler,
        chance: Chance,
        halving: Halving | None,
        keeper: CheckpointKeeper,
        budget: Budget,
        levels: tuple[float, ...],
        seed: int,
        generation: int | None = None,
        max_failures: int = 0,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """`max_failures`: how often a trial that raised or was lost is set up again."""
        self._ledger = ledger
        self._sampler = sampler
        self._chance = chance
        self._halving = halving
        self._keeper = keeper
        self._budget = budget
        self._levels = levels
        self._seed = seed
        self._generation = generation
        self._max_failures = max_failures
        self._clock = clock
        self._started = clock() - ledger.elapsed_seconds
        unfinished = [t.trial_id for t in ledger.trials() if not t.finished]
        self._waiting = deque(unfinished)
        self._interrupted = dict.fromkeys(unfinished, "the driver was started again")
        self._failures: Counter[str] = Counter()
        self._live: set[str] = set()
        self._torn_generation = self._is_generation_torn()

    @property
    def out_of_time(self) -> bool:
        """Whether the wall time is spent."""
        limit = self._budget.wall_seconds
        return limit is not None and self._clock() - self._started >= limit

    @property
    def hopeless(self) -> bool:
        """Whether many trials failed and none was ever measured: no recipe is to blame then."""
        trials = self._ledger.trials()
        failed = sum(trial.state is TrialState.FAILED for trial in trials)
        return failed >= HOPELESS_FAILURES and not any(trial.measurements for trial in trials)

    def next_trial(self) -> TrialRecord | Idle:
        """The trial to start now: one that was interrupted, else a newly drawn one."""
        if self.out_of_time or self.hopeless:
            return Idle.FINISHED
        if self._torn_generation:
            self._torn_generation = False
            self._draw_rest_of_generation()
        if not self._waiting:
            idle = self._draw()
            if idle is not None:
                return idle
        trial_id = self._waiting.popleft()
        self._live.add(trial_id)
        if reason := self._interrupted.pop(trial_id, None):
            self._ledger.restarted(trial_id, reason=reason)
        return self._ledger.trial(trial_id)

    def report(
        self,
        trial_id: str,
        *,
        outcome: Outcome,
        measurement: Measurement | None,
        unmeasured_flops: float = 0.0,
        reason: str | None = None,
        set_up_at: float | None = None,
        reported_at: float | None = None,
    ) -> Decision:
        """Records what a trial reports; tells whether it goes on to its next rung."""
        if measurement is not None:
            self._ledger.measured(
                trial_id, measurement, set_up_at=set_up_at, reported_at=reported_at
            )
            self._keeper.measured(trial_id, measurement.rung)
        decision = self._decide(trial_id, outcome, measurement, unmeasured_flops, reason)
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

    def _decide(
        self,
        trial_id: str,
        outcome: Outcome,
        measurement: Measurement | None,
        unmeasured_flops: float,
        reason: str | None,
    ) -> Decision:
        if measurement is not None and self._stays_at_chance(trial_id, measurement):
            return Decision.STOP
        if outcome is not Outcome.RUNNING:
            self._finish(
                trial_id,
                TrialState(outcome.value),
                reason=reason,
                unmeasured_flops=unmeasured_flops,
            )
            return Decision.STOP
        assert measurement is not None  # a trial that goes on has measured
        if self._race(trial_id, measurement) is Decision.STOP:
            self._finish(
                trial_id,
                TrialState.HALVED,
                reason=f"others were better at rung {measurement.rung}",
            )
            return Decision.STOP
        if self.out_of_time:
            self._live.discard(trial_id)
            return Decision.STOP
        return Decision.CONTINUE

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
        self._sampler.tell(self._ledger.trial(trial_id))

    def _stays_at_chance(self, trial_id: str, measurement: Measurement) -> bool:
        """Whether the trial guesses where others have learnt; if so, it is over."""
        peers = self._peers(trial_id, measurement.rung)
        if not self._chance.has_diverged(measurement.val_error, peers):
            return False
        self._finish(
            trial_id,
            TrialState.DIVERGED,
            reason=f"an error of {measurement.val_error:.3f} at rung {measurement.rung} is no "
            f"better than guessing ({self._chance.error:.3f}), where "
            f"{self._chance.learners(peers)} of {len(peers)} trials have learnt",
        )
        return True

    def _race(self, trial_id: str, measurement: Measurement) -> Decision:
        if self._halving is None:
            return Decision.CONTINUE
        peers = self._peers(trial_id, measurement.rung)
        return self._halving.decide(measurement.rung, measurement.val_error, peers)

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
        suggestion = self._sampler.ask(number, max_target_flops=room)
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
        """What is left of the compute budget if every running trial spends all it aims at.

        A trial's compute never exceeds its target, so a sweep never exceeds its budget, but by
        what trials repeat after failures.
        """
        if self._budget.sweep_flops is None:
            return None
        open_trials = (self._ledger.trial(t) for t in (*self._live, *self._waiting))
        committed = sum(
            max(0.0, trial.recipe.target_flops - _spent(trial)) for trial in open_trials
        )
        return self._budget.sweep_flops - self._ledger.sweep_flops - committed


def _spent(trial: TrialRecord) -> float:
    return trial.measurements[-1].train_flops if trial.measurements else 0.0
