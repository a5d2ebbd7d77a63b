"""NSGA-II: recipes are bred from the better ones of the last generation."""

from collections.abc import Sequence
from copy import copy
from typing import Any

import optuna
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler, NSGAIISampler
from optuna.trial import FrozenTrial
from optuna.trial import TrialState as StudyState

from orchestrator.search.excerpt import LONGEST, best, study_of
from orchestrator.search.history_draws import HistoryDraws, offers
from orchestrator.search.sampler import MakeDraws


def nsga2(*, population: int) -> MakeDraws:
    """Draws by NSGA-II (Deb et al. 2002, as Optuna has it) with so many recipes a generation.

    A generation is the next `population` finished trials in order of suggestion, so that which
    trial belongs to which is told by the study alone, whenever the process was started.
    """
    if population < 2:
        raise ValueError(f"population={population!r} must be at least 2, to have two parents.")

    def draws(history: optuna.Study, seed: int) -> BaseSampler:
        return _NSGA2Draws(history, seed=seed, population=population)

    return draws


class _NSGA2Draws(HistoryDraws):
    def __init__(self, history: optuna.Study, *, seed: int, population: int) -> None:
        trials = history.get_trials(deepcopy=False)
        complete = [trial for trial in trials if trial.state is StudyState.COMPLETE]
        generations = _generations(complete, population=population)
        if len(trials) > LONGEST:
            trials = [trial for generation in generations for trial in generation]
        super().__init__(history, trials, seed=seed)
        self._sampler = NSGAIISampler(population_size=population, seed=seed)
        self._child = self._breed(generations)

    def sampled(self, name: str, distribution: BaseDistribution) -> Any:
        if name in self._child and offers(distribution, self._child[name]):
            return self._child[name]
        return self._sampler.sample_independent(self.history, self.newcomer, name, distribution)

    def _breed(self, generations: Sequence[Sequence[FrozenTrial]]) -> dict[str, Any]:
        """Draws the values that the parents hand down; none in the first generation."""
        numbered = [
            _of_generation(number, trial)
            for number, generation in enumerate(generations)
            for trial in generation
        ]
        study = study_of(numbered, self.history.directions)
        space = self._sampler.infer_relative_search_space(study, self.newcomer)
        newcomer = _of_generation(len(generations) - 1, self.newcomer)
        return self._sampler.sample_relative(study, newcomer, space)


_GENERATION = NSGAIISampler._get_generation_key()
"""Where Optuna looks for the number of a trial's generation."""


def _generations(
    complete: Sequence[FrozenTrial], *, population: int
) -> Sequence[Sequence[FrozenTrial]]:
    """Splits the trials into generations, the last of them unfinished or empty.

    Of a long history the best trials of early generations stand for all of them.
    """
    whole = len(complete) // population
    kept = max(1, LONGEST // population - 1)
    first = max(0, whole - kept) if len(complete) > LONGEST else 0
    generations = [
        complete[number * population : (number + 1) * population]
        for number in range(first, whole + 1)
    ]
    if first:
        generations.insert(0, best(complete[: first * population], population))
    return generations


def _of_generation(number: int, trial: FrozenTrial) -> FrozenTrial:
    """Returns the trial with the number of its generation."""
    numbered = copy(trial)
    numbered.system_attrs = {**trial.system_attrs, _GENERATION: number}
    return numbered
