"""The sampler of a sweep: recipes drawn by an Optuna sampler from the trials that have finished."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
from numpy.random import SeedSequence
from optuna.distributions import IntDistribution, distribution_to_json, json_to_distribution
from optuna.samplers import BaseSampler, RandomSampler

from orchestrator.search.given import GivenDraws
from orchestrator.search.strategy import Suggestion
from orchestrator.search.study import SweepStudy
from orchestrator.store.ledger import TrialRecord
from search_spaces.draws import Draw, draw
from search_spaces.finetuning import TARGET
from search_spaces.problem import Problem
from search_spaces.ranges import InvalidRangeError, Ranges
from search_spaces.recipe import InvalidRecipeError
from search_spaces.space import Space

_DRAWS = 32
"""Draws before a space that keeps making invalid or unaffordable recipes is given up."""

RunSpace = Callable[..., Draw]
"""Runs a space as `search_spaces.draws.draw` does."""
MakeDraws = Callable[[optuna.Study, int], BaseSampler]
"""Makes, of the sweep's study and a seed, what one new trial's values are drawn from."""


class StudySampler:
    """Suggests recipes by what an Optuna sampler makes of the sweep's study.

    The study's objectives are (validation error, log10 training FLOPs), over every parameter of
    the space, the compute aimed at included. A suggestion depends on (seed, number, trials asked
    and told before), not on when or how often the process was started. What the sampler knows lies
    in a `SweepStudy`, a view of the ledger.
    """

    def __init__(
        self,
        *,
        study_path: Path,
        sweep_id: str,
        space: Space,
        ranges: Ranges,
        problem: Problem,
        seed: int,
        draws: MakeDraws,
        run_space: RunSpace = draw,
    ) -> None:
        """`space` and `ranges` are expected to have passed `check_space`."""
        if seed < 0:
            raise ValueError(f"seed={seed!r} must not be negative; choose a whole number from 0.")
        self._study = SweepStudy(study_path, sweep_id)
        self._space = space
        self._ranges = ranges
        self._problem = problem
        self._seed = seed
        self._draws = draws
        self._run_space = run_space

    def ask(
        self,
        number: int,
        *,
        max_target_flops: float | None = None,
        target_flops: float | None = None,
        given: Mapping[str, Any] | None = None,
    ) -> Suggestion | None:
        """The recipe of trial `number`, which from now on counts as running.

        It has the values `given` that the space asks for and offers. It aims at `target_flops`
        training FLOPs if they are given, and never at more than `max_target_flops`. `None`, and
        nothing is added, when the space offers no recipe that cheap. Raises `ValueError` when
        `number` is not the next one, and `InvalidRecipeError` when the space keeps making invalid
        recipes.
        """
        if number != len(self._study):
            raise ValueError(
                f"Trial {number} was asked for while the study holds {len(self._study)} trials; "
                "numbers must follow one another: reconcile it with the ledger first."
            )
        limits = [flops for flops in (max_target_flops, target_flops) if flops is not None]
        drawn = self._draw(number, min(limits, default=None), given)
        if drawn is None:
            return None
        if target_flops in self._problem.rungs and target_flops == min(limits):
            drawn = _aimed(drawn, target_flops, rung=self._problem.rungs.index(target_flops))
        self._study.begin(drawn)
        distributions = {
            name: distribution_to_json(distribution)
            for name, distribution in drawn.distributions.items()
        }
        return Suggestion(
            number=number, recipe=drawn.recipe, params=drawn.params, distributions=distributions
        )

    def tell(self, record: TrialRecord) -> None:
        """Learns what the ledger knows of one trial; doing it twice is once.

        A trial the sampler did not suggest (a confirming re-run) is added, running or finished;
        it must be told before the next `ask`, because the study's numbers are the ledger's.
        Raises `ValueError` when an earlier trial is missing.
        """
        self._study.tell(record)

    def reconcile(self, records: Iterable[TrialRecord]) -> None:
        """Makes the sampler know exactly what the ledger knows; called at every start."""
        self._study.reconcile(records)

    def _draw(
        self, number: int, max_target_flops: float | None, given: Mapping[str, Any] | None
    ) -> Draw | None:
        """A valid recipe within the limit, or `None`."""
        limit = self._problem.rungs[-1] if max_target_flops is None else max_target_flops
        problem = self._problem.capped(limit)
        if problem is None:
            return None
        invalid: InvalidRecipeError | None = None
        for attempt in range(_DRAWS):
            sampler = self._sampler(number, attempt)
            if given:
                sampler = GivenDraws(given, sampler)
            try:
                drawn = self._run_space(self._space, self._ranges, problem, sampler, clip=True)
            except InvalidRangeError:
                if problem == self._problem:
                    raise
                return None  # the ranges ask for rungs that the limit does not leave
            except InvalidRecipeError as error:
                invalid = error
                continue
            if drawn.recipe.target_flops <= limit:
                return drawn
        if invalid is not None:
            raise invalid
        return None

    def _sampler(self, number: int, attempt: int) -> BaseSampler:
        """A sampler without a past of its own, so that a restart changes nothing.

        Only the first attempt learns from the study: nobody tells the study what is invalid, so
        its sampler would insist.
        """
        seed = int(SeedSequence((self._seed, number, attempt)).generate_state(1)[0])
        if attempt > 0:
            return RandomSampler(seed=seed)
        return self._draws(self._study.handle(), seed)


def aimed_at(
    params: Mapping[str, Any], distributions: Mapping[str, str], *, rung: int
) -> tuple[Mapping[str, Any], Mapping[str, str]]:
    """The values, and the distributions as JSON, of the recipe when it aims at the rung.

    They differ in the parameter by which the built-in spaces choose the rung; a space that chooses
    in another way has nothing to tell.
    """
    if TARGET not in params:
        return params, distributions
    known = json_to_distribution(distributions[TARGET])
    if not isinstance(known, IntDistribution):
        return params, distributions
    wide = IntDistribution(min(known.low, rung), max(known.high, rung))
    return {**params, TARGET: rung}, {**distributions, TARGET: distribution_to_json(wide)}


def _aimed(drawn: Draw, target_flops: float, *, rung: int) -> Draw:
    """The draw when its recipe aims at the rung, of so many training FLOPs."""
    texts = {n: distribution_to_json(d) for n, d in drawn.distributions.items()}
    params, distributions = aimed_at(drawn.params, texts, rung=rung)
    return replace(
        drawn,
        recipe=replace(drawn.recipe, target_flops=target_flops),
        params=params,
        distributions={n: json_to_distribution(text) for n, text in distributions.items()},
    )
