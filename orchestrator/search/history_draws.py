"""Draws for a new trial from what an Optuna sampler makes of another study's trials."""

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.samplers import BaseSampler, RandomSampler
from optuna.trial import FrozenTrial, create_trial
from optuna.trial import TrialState as StudyState

from orchestrator.search.excerpt import study_of


class HistoryDraws(BaseSampler):
    """Draws the values of a throw-away trial, one parameter after another, from a history.

    The history may hold choices that are offered no longer: a sweep can go on with other ranges or
    a newer space. A sampler that favours such a choice is overruled by chance.
    """

    def __init__(self, history: optuna.Study, trials: Sequence[FrozenTrial], *, seed: int) -> None:
        """`trials` are those of the history that the sampler is to see."""
        self.history = study_of(trials, history.directions)
        self._trials = trials
        # without a number: samplers leave the history's trial of the same number out
        self.newcomer = create_trial(state=StudyState.RUNNING)
        self._random = RandomSampler(seed=seed)

    @abstractmethod
    def sampled(self, name: str, distribution: BaseDistribution) -> Any:
        """Draws a value of the parameter; a choice may be one that only the history has."""

    def infer_relative_search_space(
        self, study: optuna.Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        return {}  # every parameter is drawn when the space asks for it

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
        return self.sampled(param_name, param_distribution)

    def _choice(self, name: str, distribution: CategoricalDistribution) -> Any:
        """Draws one of the choices offered; the sampler is asked with the history's choices too."""
        gone = {
            trial.params[name]: None
            for trial in self._trials
            if name in trial.params and trial.params[name] not in distribution.choices
        }
        together = CategoricalDistribution((*distribution.choices, *gone))
        if (choice := self.sampled(name, together)) in distribution.choices:
            return choice
        return self._random.sample_independent(self.history, self.newcomer, name, distribution)


def offers(distribution: BaseDistribution, value: Any) -> bool:
    """Tells whether the parameter may have the value."""
    if isinstance(distribution, CategoricalDistribution):
        return value in distribution.choices
    return distribution._contains(distribution.to_internal_repr(value))
