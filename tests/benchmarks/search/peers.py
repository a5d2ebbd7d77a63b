"""Other ways to search, as their papers and libraries have them, on the same curves and bill.

Every measurement of theirs counts for the frontier, whatever they make of it themselves.
"""

import heapq
import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import ceil, inf, log10, sqrt
from typing import Any

import numpy as np
import optuna
from optuna.samplers import BaseSampler, GPSampler, NSGAIISampler, RandomSampler, TPESampler
from optuna.study import StudyDirection
from optuna.trial import TrialState, create_trial

from search_spaces.draws import Draw
from search_spaces.ranges import RangedTrial, Ranges
from search_spaces.recipe import InvalidRecipeError
from tests.benchmarks.search.pool import Pool
from tests.benchmarks.search.replay import (
    SET_UP_SECONDS,
    Bill,
    Event,
    Leg,
    Search,
    Setting,
    legs_of,
)
from tests.benchmarks.search.tables import CurveTable, Point
from trainables.measurement import Outcome

_MIN_PEERS = 6
_DRAWS = 32
"""Draws before a space that keeps making invalid recipes is given up."""


@dataclass(kw_only=True)
class Run:
    """A trial of a peer."""

    draw: Draw
    number: int
    """The table's entry."""
    rung: int
    """The rung aimed at."""
    legs: list[Leg]
    """What lies ahead."""
    points: list[Point] = field(default_factory=list)
    """What was measured."""
    infeasible: bool
    """Whether its recipe cannot be realised."""
    key: Any = None
    """The peer's own name of it."""


class Peer(ABC):
    """Decides what runs next and what goes on, like a scheduler and its searcher."""

    @abstractmethod
    def next_run(self) -> Run | None:
        """The next trial; None once there is nothing left to try."""

    def goes_on(self, run: Run) -> bool:
        """Whether the trial goes on after its newest measurement, which is not its last."""
        return True

    @abstractmethod
    def over(self, run: Run, *, stopped: bool, failed: bool) -> None:
        """Learns of a trial that was stopped, that failed (infeasible, diverged) or is complete."""


MakePeer = Callable[[Setting, Pool], Peer]


def peer(make: MakePeer) -> Search:
    """The search of a peer on a simulated cluster."""

    def search(setting: Setting) -> list[Event]:
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        logging.getLogger("optuna").setLevel(logging.ERROR)
        return _replayed(setting, make(setting, Pool(setting.table)))

    return search


def _replayed(setting: Setting, peer: Peer) -> list[Event]:
    """Every measurement of the peer's trials until the budget is spent."""
    bill, events, now, order = Bill(), list[Event](), 0.0, 0
    arrivals: list[tuple[float, int, Run]] = []
    while bill.train_flops < setting.budget_flops:
        while len(arrivals) < setting.workers and (run := peer.next_run()) is not None:
            order += 1
            heapq.heappush(arrivals, (now + SET_UP_SECONDS + run.legs[0].seconds, order, run))
        if not arrivals:
            break
        now, _, run = heapq.heappop(arrivals)
        leg = run.legs.pop(0)
        bill.train_flops += leg.train_flops
        bill.eval_flops += leg.eval_flops
        if leg.point is not None:
            run.points.append(leg.point)
            events.append(bill.event(run.number, run.rung, leg.point, seconds=now))
        if not run.legs:
            peer.over(run, stopped=False, failed=leg.point is None)
        elif leg.point is not None and not peer.goes_on(run):
            peer.over(run, stopped=True, failed=False)
        else:
            order += 1
            heapq.heappush(arrivals, (now + run.legs[0].seconds, order, run))
    return events


def run_of(table: CurveTable, draw: Draw, *, seed: int, trunk_flops: float = 0.0) -> Run:
    """The trial of a recipe of the table towards what it aims at."""
    number, rung = table.entry(draw.recipe).number, table.rung(draw.recipe)
    curve = table.curve(number, rung, seed)
    return Run(
        draw=draw,
        number=number,
        rung=rung,
        legs=legs_of(curve, after=None, trunk_flops=trunk_flops),
        infeasible=curve.outcome is Outcome.INFEASIBLE,
    )


class TopK(Peer):
    """Many recipes at a low rung, then the best few to the top, and again.

    "Is One Epoch All You Need For Multi-Fidelity Hyperparameter Optimization?"
    (arXiv 2307.15422), in rounds, because a sweep has no end that is known here.
    """

    def __init__(
        self, setting: Setting, pool: Pool, *, first_rung: int = 2, recipes: int = 32, best: int = 3
    ) -> None:
        self._setting, self._table, self._pool = setting, setting.table, pool
        self._first_rung = first_rung
        self._recipes, self._best = recipes, best
        self._sampler = RandomSampler(seed=setting.seed)
        self._first: list[Run] = []
        """The trials at the low rung whose recipe has not run to the top."""
        self._drawn, self._live, self._tops = 0, 0, 0

    def next_run(self) -> Run | None:
        run = self._next()
        self._live += run is not None
        return run

    def over(self, run: Run, *, stopped: bool, failed: bool) -> None:
        self._live -= 1
        if run.rung == self._first_rung and not failed:
            self._first.append(run)

    def _next(self) -> Run | None:
        if self._tops:
            return self._to_the_top()
        if self._drawn < self._recipes and (run := self._newcomer()) is not None:
            return run
        if self._live or not self._first:  # the best are known once all are measured
            return None
        self._drawn, self._tops = 0, self._best
        return self._to_the_top()

    def _newcomer(self) -> Run | None:
        ranges = {**self._table.ranges, "target_rung": self._first_rung}
        drawn = self._pool.draw(
            self._table.space, ranges, self._table.problem, self._sampler, clip=True
        )
        self._drawn += 1
        return run_of(self._table, drawn, seed=self._setting.seed)

    def _to_the_top(self) -> Run | None:
        self._tops -= 1
        if not self._first:
            self._tops = 0
            return None
        best = min(self._first, key=lambda run: run.points[-1].measurement.val_error)
        self._first.remove(best)
        recipe = self._table.entry(best.draw.recipe).recipe
        draw = Draw(recipe=recipe, names=(), params={}, distributions={})
        trunk = best.points[-1].measurement.trunk_flops
        return run_of(self._table, draw, seed=self._setting.seed, trunk_flops=trunk)


class OptunaPeer(Peer):
    """An Optuna study that is asked and told as its documentation shows.

    A drawn recipe enters the study as the table's recipe that it becomes; the trial that was asked
    for is told to have failed, which Optuna's samplers leave out.
    """

    def __init__(
        self,
        setting: Setting,
        pool: Pool,
        sampler: BaseSampler,
        *,
        directions: Sequence[StudyDirection] = (StudyDirection.MINIMIZE, StudyDirection.MINIMIZE),
        ranges: Ranges | None = None,
    ) -> None:
        self._setting, self._table, self._pool = setting, setting.table, pool
        self._ranges = {**self._table.ranges, **(ranges or {})}
        self._study = optuna.create_study(directions=directions, sampler=sampler)

    def next_run(self) -> Run | None:
        drawn, attrs = self._drawn()
        if drawn is None:
            return None
        self._study.add_trial(
            create_trial(
                state=TrialState.RUNNING,
                params=dict(drawn.params),
                distributions=dict(drawn.distributions),
                system_attrs=attrs,
            )
        )
        run = run_of(self._table, drawn, seed=self._setting.seed)
        run.key = len(self._study.get_trials(deepcopy=False)) - 1
        return run

    def over(self, run: Run, *, stopped: bool, failed: bool) -> None:
        """Tells the end of the curve; one that has failed has the worst error."""
        if failed or not run.points:
            values = (1.0, log10(run.draw.recipe.target_flops))
        else:
            last = run.points[-1].measurement
            values = (last.val_error, log10(last.train_flops))
        self._study.tell(run.key, values)

    def _drawn(self) -> tuple[Draw | None, dict[str, Any]]:
        """A recipe of the pool, and what the sampler noted on the trial that gave it."""
        problem = self._table.problem
        for _ in range(_DRAWS):
            trial = self._study.ask()
            ranged = RangedTrial(trial, self._ranges, clip=True)
            try:
                recipe = self._table.space(ranged, problem)
            except InvalidRecipeError:
                self._study.tell(trial, state=TrialState.FAIL)
                continue
            drawn = Draw(
                recipe=recipe,
                names=ranged.names,
                params=trial.params,
                distributions=trial.distributions,
            )
            noted = self._study.get_trials(deepcopy=False)[trial.number].system_attrs
            attrs = {name: value for name, value in noted.items() if "generation" in name}
            self._study.tell(trial, state=TrialState.FAIL)
            return self._pool.snap(drawn), attrs
        return None, {}


class StoppedTPE(OptunaPeer):
    """Single-objective TPE on the error, with trials aiming at the top that ASHA stops.

    The stopping form of asynchronous successive halving as Ray Tune has it (arXiv 1810.05934): a
    trial goes on if it is no worse than the best 1/η of those measured at its rung before. With
    more than one bracket, trials of bracket s are first judged at rung s; brackets get trials in
    inverse proportion to what each costs, as in Hyperband (arXiv 1603.06560, 1807.01774).
    """

    def __init__(
        self, setting: Setting, pool: Pool, *, brackets: int = 1, reduction_factor: float = 2.0
    ) -> None:
        top = len(setting.table.levels) - 1
        super().__init__(
            setting,
            pool,
            TPESampler(seed=setting.seed),
            directions=(StudyDirection.MINIMIZE,),
            ranges={"target_rung": top},
        )
        self._reduction_factor = reduction_factor
        self._errors: dict[tuple[int, int], list[float]] = {}
        self._bracket_of: dict[int, int] = {}
        shares = [
            ceil((brackets) * reduction_factor ** (brackets - 1 - s) / (brackets - s))
            for s in range(brackets)
        ]
        self._shares = np.array(shares) / sum(shares)
        self._random = np.random.default_rng(setting.seed)

    def goes_on(self, run: Run) -> bool:
        newest = run.points[-1].measurement
        storage = self._study._storage
        trial_id = storage.get_trial_id_from_study_id_trial_number(self._study._study_id, run.key)
        storage.set_trial_intermediate_value(trial_id, newest.rung, newest.val_error)
        bracket = self._bracket_of.setdefault(
            run.key, int(self._random.choice(len(self._shares), p=self._shares))
        )
        if newest.rung < bracket:
            return True
        before = self._errors.setdefault((bracket, newest.rung), [])
        cutoff = np.quantile(before, 1 / self._reduction_factor) if before else inf
        before.append(newest.val_error)
        return bool(newest.val_error <= cutoff)

    def over(self, run: Run, *, stopped: bool, failed: bool) -> None:
        if stopped:
            self._study.tell(run.key, state=TrialState.PRUNED)
            return
        self._study.tell(run.key, 1.0 if failed else run.points[-1].measurement.val_error)


class Before(OptunaPeer):
    """This product as it stood at commit 28927da, written down here because it moves on.

    Multi-objective TPE after 16 random recipes, told the last point of a curve; asynchronous
    halving in its stopping form, η = 2 from 6 trials at a rung; trials that do no better than
    guessing where most others have learnt count as diverged. A recipe chooses its own target.
    """

    def __init__(self, setting: Setting, pool: Pool) -> None:
        super().__init__(setting, pool, TPESampler(n_startup_trials=16, seed=setting.seed))
        self._errors: dict[int, list[float]] = {}

    def goes_on(self, run: Run) -> bool:
        error, errors = self._measured(run)
        if self._at_chance(error, errors):
            return False
        places = max(1, len(errors) // 2)
        return len(errors) < _MIN_PEERS or sum(other < error for other in errors) < places

    def over(self, run: Run, *, stopped: bool, failed: bool) -> None:
        if not failed:
            error, errors = self._measured(run) if not stopped else self._known(run)
            failed = self._at_chance(error, errors)
        elif run.infeasible:
            trial_id = self._study._storage.get_trial_id_from_study_id_trial_number(
                self._study._study_id, run.key
            )
            optuna.Trial(self._study, trial_id).set_constraint("infeasible", 1.0)
        super().over(run, stopped=stopped, failed=failed)

    def _measured(self, run: Run) -> tuple[float, list[float]]:
        """The newest error and all that were measured at its rung, itself included."""
        newest = run.points[-1].measurement
        self._errors.setdefault(newest.rung, []).append(newest.val_error)
        return self._known(run)

    def _known(self, run: Run) -> tuple[float, list[float]]:
        newest = run.points[-1].measurement
        return newest.val_error, self._errors[newest.rung]

    def _at_chance(self, error: float, errors: list[float]) -> bool:
        images, chance = self._table.images, self._table.chance_error
        if images is None or len(errors) < _MIN_PEERS:
            return False
        learnt_below = chance - 2.326 * sqrt(chance * (1 - chance) / images)
        learners = sum(other < learnt_below for other in errors)
        return error >= learnt_below and 2 * learners > len(errors)


PEERS: dict[str, Search] = {
    "before": peer(Before),
    "topk": peer(TopK),
    "motpe": peer(lambda s, pool: OptunaPeer(s, pool, TPESampler(seed=s.seed))),
    "nsga2": peer(
        lambda s, pool: OptunaPeer(s, pool, NSGAIISampler(population_size=16, seed=s.seed))
    ),
    "gp": peer(
        lambda s, pool: OptunaPeer(s, pool, GPSampler(seed=s.seed, warn_independent_sampling=False))
    ),
    "asha_tpe": peer(StoppedTPE),
    "hyperband_tpe": peer(lambda s, pool: StoppedTPE(s, pool, brackets=4)),
}
