"""The sampler: which recipe to try next, learnt from the trials that have finished."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
from numpy.random import SeedSequence
from optuna.distributions import BaseDistribution, CategoricalDistribution, distribution_to_json
from optuna.samplers import BaseSampler, RandomSampler, TPESampler
from optuna.trial import FrozenTrial, create_trial
from optuna.trial import TrialState as StudyState

from orchestrator.search.study import SweepStudy
from orchestrator.store.ledger import TrialRecord
from search_spaces.draws import Draw, draw
from search_spaces.problem import Problem
from search_spaces.ranges import InvalidRangeError, Ranges
from search_spaces.recipe import InvalidRecipeError, Recipe
from search_spaces.space import Space

_DRAWS = 32
"""Draws before a space that keeps making invalid or unaffordable recipes is given up."""


@dataclass(frozen=True, kw_only=True)
class Suggestion:
    """A recipe to try, with what a `TrialRecord` must keep of its making."""

    number: int
    recipe: Recipe
    params: Mapping[str, Any]
    """The sampler's parameters that gave the recipe."""
    distributions: Mapping[str, str]
    """Their distributions, as JSON."""


class FrontierSampler:
    """Suggests recipes near the frontier of (validation error, log10 training FLOPs).

    Univariate multi-objective TPE over every parameter of the space, the compute aimed at
    included. Trials still running count as bad nearby ("constant liar"), so that parallel trials
    spread; infeasible ones count as violating a constraint, failed ones not at all.

    A suggestion depends on (seed, number, trials asked and told before), not on when or how often
    the process was started. What the sampler knows lies in a `SweepStudy`, a view of the ledger.
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
        startup_trials: int,
    ) -> None:
        """`startup_trials` must have finished before TPE takes over from random draws.

        TPE calls the best tenth of the trials good, so it has nothing to aim at before the tenth.
        `space` and `ranges` are expected to have passed `check_space`.
        """
        if seed < 0:
            raise ValueError(f"seed={seed!r} must not be negative; choose a whole number from 0.")
        if startup_trials < 1:
            raise ValueError(
                f"startup_trials={startup_trials!r} must be at least 1; "
                "TPE has nothing to learn from before."
            )
        self._study = SweepStudy(study_path, sweep_id)
        self._space = space
        self._ranges = ranges
        self._problem = problem
        self._seed = seed
        self._startup_trials = startup_trials

    def ask(self, number: int, *, max_target_flops: float | None = None) -> Suggestion | None:
        """The recipe of trial `number`, which from now on counts as running.

        It aims at no more than `max_target_flops` training FLOPs. `None`, and nothing is added,
        when the space offers no recipe that cheap. Raises `ValueError` when `number` is not the
        next one, and `InvalidRecipeError` when the space keeps making invalid recipes.
        """
        if number != len(self._study):
            raise ValueError(
                f"Trial {number} was asked for while the study holds {len(self._study)} trials; "
                "numbers must follow one another: reconcile it with the ledger first."
            )
        drawn = self._draw(number, max_target_flops)
        if drawn is None:
            return None
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

    def _draw(self, number: int, max_target_flops: float | None) -> Draw | None:
        """A valid recipe within the limit, or `None`."""
        limit = self._problem.rungs[-1] if max_target_flops is None else max_target_flops
        problem = self._problem.capped(limit)
        if problem is None:
            return None
        invalid: InvalidRecipeError | None = None
        for attempt in range(_DRAWS):
            sampler = self._sampler(number, attempt)
            try:
                drawn = draw(self._space, self._ranges, problem, sampler, clip=True)
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

        Only the first attempt asks TPE: nobody tells it what is invalid, so it would insist.
        """
        seed = int(SeedSequence((self._seed, number, attempt)).generate_state(1)[0])
        if attempt > 0:
            return RandomSampler(seed=seed)
        return _HistorySampler(self._study.handle(), seed=seed, startup_trials=self._startup_trials)


class _HistorySampler(BaseSampler):
    """Draws a throw-away trial's values from what TPE makes of another study's trials."""

    def __init__(self, history: optuna.Study, *, seed: int, startup_trials: int) -> None:
        self._history = history
        self._random = RandomSampler(seed=seed)
        # Univariate: conditional parameters are sampled as well as any, and it found better
        # frontiers than multivariate TPE in simulation.
        self._tpe = TPESampler(n_startup_trials=startup_trials, multivariate=False, seed=seed)
        # without a number: TPE leaves the history's trial of the same number out
        self._newcomer = create_trial(state=StudyState.RUNNING)

    def infer_relative_search_space(
        self, study: optuna.Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        return {}  # univariate TPE samples every parameter by itself

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        return {}

    def sample_independent(
        self,
        study: optuna.Study,
        trial: FrozenTrial,
        param_name: str,
        param_distribution: BaseDistribution,
    ) -> Any:
        if isinstance(param_distribution, CategoricalDistribution):
            return self._choice(param_name, param_distribution)
        return self._sampled(param_name, param_distribution)

    def _choice(self, name: str, distribution: CategoricalDistribution) -> Any:
        """One of the choices, also when the history holds choices that are offered no longer.

        TPE refuses such a history, so it draws from old and new choices together, and chance
        decides where it favours an old one: a sweep can go on with other ranges or a newer space.
        """
        gone = {
            trial.params[name]: None
            for trial in self._history.get_trials(deepcopy=False)
            if name in trial.params and trial.params[name] not in distribution.choices
        }
        together = CategoricalDistribution((*distribution.choices, *gone))
        if (choice := self._sampled(name, together)) in distribution.choices:
            return choice
        return self._random.sample_independent(self._history, self._newcomer, name, distribution)

    def _sampled(self, name: str, distribution: BaseDistribution) -> Any:
        return self._tpe.sample_independent(self._history, self._newcomer, name, distribution)
