"""A search strategy: a sampler draws recipes, and judges decide which trials go on.

They are plain decision-makers that touch no process, so that a replay of recorded curves drives
them as a sweep does. `strategies` builds them by the names that the config gives.
"""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Protocol

from orchestrator.search.field import Field, Room
from orchestrator.store.ledger import TrialRecord, TrialState
from search_spaces.recipe import Recipe
from trainables.measurement import Measurement


class Decision(StrEnum):
    """The fate of a trial that has reached a rung."""

    CONTINUE = "continue"
    """It trains on to the next rung."""
    STOP = "stop"
    """It is over, and others get its compute."""
    PAUSE = "pause"
    """It leaves its worker and may be handed out again, to go on from its newest checkpoint."""


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """A judge's decision on a trial, and what the ledger keeps of it."""

    decision: Decision
    state: TrialState | None = None
    """How the trial ended; given where it is stopped, and only there."""
    reason: str | None = None
    """Why it was stopped, for people."""

    def __post_init__(self) -> None:
        stops = self.decision is Decision.STOP
        if (self.state is not None) is not stops or (self.state and not self.state.finished):
            raise ValueError(
                f"decision={self.decision.value!r} with state={self.state!r}: a trial that is "
                "stopped needs the state it ends in, and one that is not has none."
            )


GO_ON = Verdict(decision=Decision.CONTINUE)
"""The verdict of a judge that has nothing against a trial."""


@dataclass(frozen=True, kw_only=True)
class Standing:
    """A trial at the rung that it has just reached, among the others."""

    trial: TrialRecord
    """With its curve so far, `trial.measurements`."""
    measurement: Measurement
    """Its measurement at this rung."""
    peers: Sequence[float]
    """Validation errors, 0-1, of all trials measured at this rung so far, its own included,
    ascending."""
    over: bool
    """Whether it has spent the compute that it aimed at; a race has nothing to decide then."""


@dataclass(frozen=True, kw_only=True)
class Move:
    """A free worker's next work."""

    trial: TrialRecord | None = None
    """The trial whose recipe goes on; None for a new recipe."""
    target_flops: float | None = None
    """Training FLOPs that the recipe of a finished trial is raised to, in a trial of its own, or
    that a new recipe aims at. None: a paused trial goes on; a new recipe aims where it likes."""
    again: bool = False
    """Whether the recipe of the finished trial is run once more, with another seed, as far as it
    went, which confirms what was measured."""


class Judge(Protocol):
    """Decides on one trial at a time, from numbers alone; keeps no state of its own."""

    def judge(self, standing: Standing) -> Verdict:
        """Tells what becomes of the trial. Errors that are not finite count as worst."""


class Scheduler(Judge, Protocol):
    """The judge that races trials: it may also pause them, and says who goes on, and how far."""

    def next_move(self, field: Field, room: Room) -> Move | None:
        """Says what a free worker does now; None where nothing that is worth it has room.

        What it does must fit into `room`. A scheduler that pauses nobody goes on with those that
        another one has left paused.
        """

    def candidates(self, field: Field) -> Collection[str]:
        """The finished trials that may yet be raised from the steps that they have kept.

        Their checkpoints are kept, so they must be few; the steps of others are dropped for good.
        """

    def hopeless(self, field: Field) -> Mapping[str, str]:
        """The paused trials that will not go on, with the reason of each.

        They end where they are, and their checkpoints are dropped for good; those that stay paused
        keep theirs, so they must be few.
        """


@dataclass(frozen=True, kw_only=True)
class Suggestion:
    """A recipe to try, with what a `TrialRecord` must keep of its making."""

    number: int
    recipe: Recipe
    params: Mapping[str, Any]
    """The sampler's parameters that gave the recipe."""
    distributions: Mapping[str, str]
    """Their distributions, as JSON."""
    start: int | None = None
    """The place among the recipes of the sweep's start, from 0, of the one that this is."""


class Sampler(Protocol):
    """Draws recipes and learns from the ledger's trials.

    A suggestion must depend on (seed, number, trials asked and told before) alone, not on when or
    how often the process was started.
    """

    def reconcile(self, records: Iterable[TrialRecord]) -> None:
        """Makes the sampler know exactly what the ledger knows; called at every start."""

    def ask(
        self,
        number: int,
        *,
        max_target_flops: float | None = None,
        target_flops: float | None = None,
    ) -> Suggestion | None:
        """The recipe of trial `number`, which from now on counts as running.

        It aims at `target_flops` training FLOPs if they are given, and never at more than
        `max_target_flops`. Returns None, and adds nothing, when the space offers no recipe that
        cheap. Raises `ValueError` when `number` is not the
        next one, and `InvalidRecipeError` when the space keeps making invalid recipes.
        """

    def tell(self, record: TrialRecord) -> None:
        """Learns what the ledger knows of one trial; doing it twice is once.

        A trial the sampler did not suggest (a confirming re-run) is added, running or finished;
        it must be told before the next `ask`, because the sampler's numbers are the ledger's.
        Raises `ValueError` when an earlier trial is missing.
        """


@dataclass(frozen=True, kw_only=True)
class Strategy:
    """Everything that decides what a sweep tries."""

    sampler: Sampler
    scheduler: Scheduler
    judges: Sequence[Judge] = ()
    """They are asked before the scheduler; the first verdict but `GO_ON` stands."""
    watch: Callable[[Field], None] | None = None
    """Sees the field before every move; a forecast learns from it, for example."""
    generation: int | None = None
    """Trials of a generation, each of which sees whole earlier generations only; None: each sees
    all there is."""
