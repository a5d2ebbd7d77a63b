"""NSGA-II: recipes are bred from the better ones of the last generation."""

from collections.abc import Sequence
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.samplers import BaseSampler, NSGAIISampler
from optuna.trial import FrozenTrial, create_trial
from optuna.trial import TrialState as StudyState

from orchestrator.search.history_draws import HistoryDraws
from orchestrator.search.sampler import MakeDraws


def nsga2(*, population: int) -> MakeDraws:
    """Draws by NSGA-II (Deb et al. 2002, as Optuna has it) with so many recipes a generation.

    A generation is the next `population` finished trials in order of suggestion, so that who
    belongs to which is told by the study alone, whenever the process was started.
    """
    if population < 2:
        raise ValueError(f"population={population!r} must be at least 2, to have two parents.")

    def draws(history: optuna.Study, seed: int) -> BaseSampler:
        return _NSGA2Draws(history, seed=seed, population=population)

    return draws


class _NSGA2Draws(HistoryDraws):
    def __init__(self, history: optuna.Study, *, seed: int, population: int) -> None:
        super().__init__(history, seed=seed)
        self._sampler = NSGAIISampler(population_size=population, seed=seed)
        self._child = self._breed(population)

    def sampled(self, name: str, distribution: BaseDistribution) -> Any:
        if name in self._child and _offers(distribution, self._child[name]):
            return self._child[name]
        return self._sampler.sample_independent(self.history, self.newcomer, name, distribution)

    def _breed(self, population: int) -> dict[str, Any]:
        """The values that the parents hand down; none in the first generation."""
        complete = self.history.get_trials(deepcopy=False, states=(StudyState.COMPLETE,))
        generations = optuna.create_study(directions=self.history.directions)
        generations.add_trials(_numbered(complete, population=population))
        space = self._sampler.infer_relative_search_space(generations, self.newcomer)
        newcomer = create_trial(
            state=StudyState.RUNNING,
            system_attrs={_GENERATION: len(complete) // population},
        )
        return self._sampler.sample_relative(generations, newcomer, space)


_GENERATION = NSGAIISampler._get_generation_key()


def _numbered(trials: Sequence[FrozenTrial], *, population: int) -> list[FrozenTrial]:
    """The trials, each with the number of its generation where Optuna looks for it."""
    return [
        create_trial(
            state=trial.state,
            values=trial.values,
            params=trial.params,
            distributions=trial.distributions,
            constraints=trial.constraints,
            system_attrs={_GENERATION: place // population},
        )
        for place, trial in enumerate(trials)
    ]


def _offers(distribution: BaseDistribution, value: Any) -> bool:
    if isinstance(distribution, CategoricalDistribution):
        return value in distribution.choices
    return distribution._contains(distribution.to_internal_repr(value))
