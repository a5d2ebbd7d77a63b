"""The driver: every decision of a sweep, and no process.

Tune's adapters, the bare loop of the benchmark and the tests drive it alike: they ask for the
next trial, hand in what trials report, and do as they are told.
"""

import time
from bisect import insort
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from enum import StrEnum
from typing import Any

from orchestrator.search.config import Budget
from orchestrator.search.confirmation import Confirmation, judge, reached_flops
from orchestrator.search.field import Field, Room, unspent_flops
from orchestrator.search.sampler import aimed_at
from orchestrator.search.strategy import GO_ON, Decision, Move, Standing, Strategy, Verdict
from orchestrator.store.ledger import Ledger, TrialRecord, TrialState
from orchestrator.store.retention import CheckpointKeeper
from search_spaces.recipe import Recipe
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
        confirm: float = 0.0,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """`max_failures`: how often a trial that raised or was lost is set up again.

        `confirm` is the share of the budget that may go to confirming the frontier's points.
        """
        self._ledger = ledger
        self._strategy = strategy
        self._generation = strategy.generation
        self._keeper = keeper
        self._budget = budget
        self._confirmation = Confirmation(confirm, budget)
        self._levels = levels
        self._seed = seed
        self._max_failures = max_failures
        self._clock = clock
        self._started = clock() - ledger.elapsed_seconds
        trials = ledger.trials()
        self._field = Field(levels, ledger.errors_at, trials)
        self._failed = sum(t.state is TrialState.FAILED for t in trials)
        self._measured = any(t.measurements for t in trials)
        unfinished = [t.trial_id for t in trials if t.state is TrialState.RUNNING]
        self._waiting = deque(unfinished)
        self._interrupted = dict.fromkeys(unfinished, "the driver was started again")
        self._kept = {t.trial_id for t in trials if _keeps_steps(t)}
        """Finished trials that keep steps for others."""
        self._failures: Counter[str] = Counter()
        self._live: set[str] = set()
        self._torn_generation = self._is_generation_torn()
        self._tidy()

    @property
    def out_of_time(self) -> bool:
        """Whether the wall time is spent."""
        return self._time_left <= 0

    @property
    def hopeless(self) -> bool:
        """Whether many trials failed and none was ever measured: no recipe is to blame then."""
        return self._failed >= HOPELESS_FAILURES and not self._measured

    def next_trial(self) -> TrialRecord | Idle:
        """The trial to start now: one that was interrupted, else what the scheduler wants."""
        if self.out_of_time or self.hopeless:
            return Idle.FINISHED
        if self._torn_generation:
            self._torn_generation = False
            self._fill_generation()
        if not self._waiting:
            idle = self._plan()
            if idle is not None:
                return idle
        trial_id = self._waiting.popleft()
        self._live.add(trial_id)
        if reason := self._interrupted.pop(trial_id, None):
            self._ledger.restarted(trial_id, reason=reason)
            self._note(trial_id)
        return self._ledger.trial(trial_id)

    def report(self, trial_id: str, report: Report) -> Decision:
        """Records what a trial reports; tells whether it goes on to its next rung."""
        if report.measurement is not None:
            self._ledger.measured(trial_id, report)
            self._measured = True
            self._note(trial_id)
            self._keeper.measured(trial_id, report.measurement.rung)
        decision = self._decide(trial_id, report)
        if not self._generation:
            self._let_go()
        self._tidy()
        return decision

    def failed(self, trial_id: str, *, reason: str, preempted: bool = False) -> None:
        """Takes back a trial that raised or was lost: it is the next to start, or has failed.

        Being preempted, with a node whose end the cluster knew of, is no failure of the trial's
        and may happen to it any number of times.
        """
        self._failures[trial_id] += not preempted
        if self._failures[trial_id] > self._max_failures:
            self._finish(trial_id, TrialState.FAILED, reason=reason)
            self._tidy()
            return
        self._live.discard(trial_id)
        self._interrupted[trial_id] = reason
        self._waiting.appendleft(trial_id)

    def _decide(self, trial_id: str, report: Report) -> Decision:
        measurement, over = report.measurement, report.outcome is not Outcome.RUNNING
        verdict = GO_ON
        # one that was resumed repeats the report after which it was paused
        if measurement and self._ledger.trial(trial_id).resumed_at != measurement.rung:
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
                needs_flops=report.needs_flops,
            )
            return Decision.STOP
        if verdict.decision is Decision.PAUSE:
            self._ledger.paused(trial_id)
            self._note(trial_id)
        if verdict.decision is Decision.PAUSE or self.out_of_time:
            self._live.discard(trial_id)
            return Decision.PAUSE
        return Decision.CONTINUE

    def _judge(self, trial_id: str, measurement: Measurement, *, over: bool) -> Verdict:
        """The first verdict on a trial that is not to go on, else to go on."""
        trial = self._ledger.trial(trial_id)
        if trial.confirms is not None:
            return judge(measurement, self._ledger.trial(trial.confirms), over=over)
        standing = Standing(
            trial=trial,
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
        needs_flops: float | None = None,
    ) -> None:
        self._ledger.finished(
            trial_id,
            state,
            reason=reason,
            unmeasured_flops=unmeasured_flops,
            needs_flops=needs_flops,
        )
        self._failed += state is TrialState.FAILED
        if _keeps_steps(self._ledger.trial(trial_id)):
            self._kept.add(trial_id)
        self._live.discard(trial_id)
        self._note(trial_id)
        self._strategy.sampler.tell(self._ledger.trial(trial_id))

    def _let_go(self) -> None:
        """Gives up paused trials, and the steps kept by finished ones, that nobody goes on from.

        In generations only between them, so that it does not matter who reports first. The steps
        that a raised trial begins with are kept until it is over: what it costs depends on them.
        """
        scheduler = self._strategy.scheduler
        for trial_id, reason in scheduler.hopeless(self._field).items():
            self._finish(trial_id, TrialState.HALVED, reason=reason)
        begun = {trial.continues for trial in self._field.running if trial.continues is not None}
        held = begun | set(scheduler.candidates(self._field))
        for trial_id in sorted(self._kept - held):
            self._ledger.released(trial_id)
            self._note(trial_id)
        self._kept &= held

    def _tidy(self) -> None:
        """Removes the checkpoints that nobody needs any more."""
        self._keeper.hold(self._kept)
        self._keeper.tidy()

    def _note(self, trial_id: str) -> None:
        self._field.update(self._ledger.trial(trial_id))

    def _peers(self, trial_id: str, rung: int) -> Sequence[float]:
        """The errors at a rung that the trial is compared with, its own included, ascending."""
        if not self._generation:
            return self._ledger.ranked_errors(rung)
        peers = list(self._ledger.ranked_errors_before(rung))
        insort(peers, self._ledger.errors_at(rung)[trial_id])
        return peers

    def _plan(self) -> Idle | None:
        """Queues what a free worker does next, in generations a whole one; else tells why not."""
        if not self._generation:
            return self._make_move()
        if self._live:
            return Idle.WAIT
        self._let_go()
        self._tidy()
        self._resume_all()
        if self._waiting:  # a generation is drawn when it sees what they bring
            return None
        idle = self._make_move()
        if idle is None and self._ledger.trial(self._waiting[-1]).confirms is None:
            self._fill_generation()
        return idle

    def _resume_all(self) -> None:
        """Queues every paused trial that goes on: all or, where the driver is killed, none."""
        going = []
        while (trial := self._paused_of(self._next_move(self._spared(self._room())))) is not None:
            going.append(trial.trial_id)
            self._field.update(replace(trial, state=TrialState.RUNNING))
            self._waiting.append(trial.trial_id)
        if going:
            self._ledger.resumed(*going)
        for trial_id in going:
            self._note(trial_id)

    def _is_generation_torn(self) -> bool:
        """Whether a driver died while it drew the last generation.

        It must be drawn whole before any of it runs. One of which a trial has run was drawn as
        far as the budget went then; if that was raised since, the rest sees what came of it.
        """
        if not self._generation or self._ledger.heard_of:
            return False
        begun = len(self._ledger) % self._generation
        last = next(reversed(self._ledger.unfinished()), None)
        if not begun or last is None:
            return False
        return not last.measurements and last.confirms is None  # it was drawn, not resumed

    def _fill_generation(self) -> None:
        assert self._generation is not None
        while len(self._field) % self._generation and self._make_move() is None:
            pass

    def _next_move(self, room: Room) -> Move | None:
        if self._strategy.watch is not None:
            self._strategy.watch(self._field)
        return self._strategy.scheduler.next_move(self._field, room)

    def _make_move(self) -> Idle | None:
        """Queues one trial; tells why it could not."""
        if any(self._begin(move, room) for move, room in self._moves()):
            return None
        return self._idle()

    def _moves(self) -> Iterator[tuple[Move, Room]]:
        """Proposes moves until one can be made, each with the room that it must fit into.

        The scheduler goes first, then the frontier is confirmed with what was kept back for it,
        and the rest is the scheduler's too.
        """
        room = self._room()
        spared = self._spared(room)
        if (move := self._next_move(spared)) is not None:
            yield move, spared
        if spared == room or (self._generation and self._waiting):
            return  # a generation must not depend on where in it the driver died
        move = self._confirmation.next_move(self._ledger.frontier, self._field, room)
        if move is not None:
            yield move, room
        if (move := self._next_move(room)) is not None:
            yield move, room

    def _begin(self, move: Move, room: Room) -> bool:
        """Queues the move's trial; tells whether it could."""
        if (paused := self._paused_of(move)) is not None:
            self._ledger.resumed(paused.trial_id)
            self._note(paused.trial_id)
            self._waiting.append(paused.trial_id)
            return True
        trial = self._new_trial(move, room)
        if trial is None:
            return False
        self._ledger.suggested(trial)
        self._note(trial.trial_id)
        self._waiting.append(trial.trial_id)
        return True

    def _paused_of(self, move: Move | None) -> TrialRecord | None:
        """The paused trial that goes on by the move, if that is what it says."""
        trial = None if move is None else move.trial
        return trial if trial is not None and trial.state is TrialState.PAUSED else None

    def _new_trial(self, move: Move, room: Room) -> TrialRecord | None:
        """The trial that the move begins; None where the room does not hold it."""
        if room.trials == 0 or not room.holds(self._least_flops(move)):
            return None
        if move.trial is None:
            return self._drawn_trial(move, room)
        if move.again:
            trial = self._confirming_trial(move.trial)
        else:
            assert move.target_flops is not None  # what is over goes on only towards more compute
            trial = self._raised_trial(move.trial, move.target_flops)
        self._strategy.sampler.tell(trial)
        return trial

    def _least_flops(self, move: Move) -> float:
        """The training FLOPs that the move's trial needs at the very least."""
        if move.trial is not None and move.again:
            return reached_flops(move.trial)
        if move.trial is None or move.target_flops is None:
            return self._levels[0]
        return move.target_flops - _kept_flops(move.trial)

    def _drawn_trial(self, move: Move, room: Room) -> TrialRecord | None:
        number, sampler = len(self._field), self._strategy.sampler
        suggestion = None
        if move.target_flops is not None:
            suggestion = sampler.ask(
                number, target_flops=move.target_flops, max_target_flops=room.flops
            )
        if suggestion is None:  # or the space has its own way with the compute aimed at
            suggestion = sampler.ask(number, max_target_flops=room.flops)
        if suggestion is None:  # nothing in the space is that cheap
            return None
        return self._next_record(
            suggestion.recipe,
            params=suggestion.params,
            distributions=suggestion.distributions,
            start=suggestion.start,
        )

    def _raised_trial(self, trial: TrialRecord, target_flops: float) -> TrialRecord:
        """A trial of the same recipe and seed that aims at more compute."""
        params, distributions = aimed_at(
            trial.params, trial.distributions, rung=self._levels.index(target_flops)
        )
        raised = self._next_record(
            replace(trial.recipe, target_flops=target_flops),
            params=params,
            distributions=distributions,
            continues=trial.trial_id,
        )
        return replace(raised, seed=trial.seed)

    def _confirming_trial(self, trial: TrialRecord) -> TrialRecord:
        """A trial of the same recipe with a seed of its own."""
        return self._next_record(
            trial.recipe,
            params=trial.params,
            distributions=trial.distributions,
            confirms=trial.trial_id,
        )

    def _next_record(self, recipe: Recipe, **known: Any) -> TrialRecord:
        """The record of the trial that begins next, with what is `known` of it besides."""
        number = len(self._field)
        return TrialRecord(
            trial_id=f"{number:05d}-{recipe.recipe_id}",
            number=number,
            recipe=recipe,
            seed=derive_seed(self._seed, "trial", number),
            suggested_at=self._clock(),
            **known,
        )

    def _idle(self) -> Idle:
        """Nothing to draw now; a trial that still runs may free compute, or be lost and wait."""
        return Idle.WAIT if self._live or self._waiting else Idle.FINISHED

    def _room(self) -> Room:
        """The rest of the budget if every running trial spends all that it aims at.

        A trial's compute never exceeds its target, so a sweep never exceeds its budget, but by
        what trials repeat after failures.
        """
        budget = self._budget
        flops = trials = None
        left = [1.0]
        if budget.sweep_flops is not None:
            committed = sum(self._committed_flops(i) for i in (*self._live, *self._waiting))
            flops = budget.sweep_flops - self._ledger.sweep_flops - committed
            left.append(flops / budget.sweep_flops)
        if budget.trials is not None:
            trials = max(0, budget.trials - len(self._field))
            left.append(trials / budget.trials)
        left.append(self._time_left)
        return Room(flops=flops, trials=trials, share_left=max(0.0, min(left)))

    def _spared(self, room: Room) -> Room:
        """The room without what is kept back to confirm the frontier."""
        return self._confirmation.spared(room, self._field, time_left=self._time_left)

    @property
    def _time_left(self) -> float:
        """The share of the wall time that is left, 1 where it has no limit."""
        limit = self._budget.wall_time
        return 1.0 if limit is None else 1 - (self._clock() - self._started) / limit

    def _committed_flops(self, trial_id: str) -> float:
        """The training FLOPs that a trial which runs or waits to may still spend."""
        trial = self._ledger.trial(trial_id)
        if trial.confirms is not None:
            confirmed = self._ledger.trial(trial.confirms)
            return max(0.0, reached_flops(confirmed) - reached_flops(trial))
        if trial.measurements or trial.continues is None:
            return unspent_flops(trial)
        return unspent_flops(trial) - _kept_flops(self._ledger.trial(trial.continues))


def _kept_flops(trial: TrialRecord) -> float:
    """The training FLOPs of a trial that its recipe's run towards more compute need not repeat."""
    return trial.measurements[-1].trunk_flops if trial.measurements else 0.0


def _keeps_steps(trial: TrialRecord) -> bool:
    return trial.state is TrialState.COMPLETE and _kept_flops(trial) > 0
