"""Recipes that a model expects most of: a sweep's forecast, or that of any study's values."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler, RandomSampler
from optuna.trial import FrozenTrial
from optuna.trial import TrialState as StudyState

from orchestrator.search.fallback import USE_SECONDS, DispensableForecaster
from orchestrator.search.forecaster import Forecaster
from orchestrator.search.sampler import MakeDraws
from orchestrator.search.study_forecast import StudyForecast
from orchestrator.search.variations import Expectation, best_variation, taken

FEWEST = 8
"""Finished trials of a study that are learnt from at least."""
GROWTH = 1.15
"""They are learnt from anew when there are so many times as many."""
RANDOM_SHARE = 0.2
"""Share of recipes that are drawn at random however much is known."""


def model(forecaster: DispensableForecaster, *, otherwise: MakeDraws) -> MakeDraws:
    """Draws the recipes that the forecaster expects most of, among variations of the history's.

    Once the forecaster is given up, `otherwise` draws.
    """

    def draws(history: optuna.Study, seed: int) -> BaseSampler:
        if not forecaster.given_up:
            with forecaster.watched(USE_SECONDS):
                return ModelSampler(seed=seed, forecaster=forecaster, history=history)
        return otherwise(history, seed)

    return draws


class ModelSampler(BaseSampler):
    """Chooses one variation of known recipes and hands out its values as they are asked.

    As an Optuna sampler of any study it learns from the values of the study's finished trials, of
    one objective or more. It knows of the space what the trials have asked: conditional parameters
    come with the recipe that had them, and what the chosen recipe lacks is drawn at random.
    """

    def __init__(
        self,
        *,
        seed: int | None = None,
        forecaster: Forecaster | None = None,
        history: optuna.Study | None = None,
    ) -> None:
        """`forecaster` tells what to expect in place of the study's values.

        With a `history`, it draws for one trial of another study what that one's trials suggest.
        """
        self._rng = np.random.default_rng(seed)
        self._random = RandomSampler(seed=seed)
        self._seed = 0 if seed is None else seed
        self._forecaster = forecaster
        self._learnt: tuple[str, int, StudyForecast] | None = None
        """The study that was last learnt from, how many of its trials, and what."""
        self._chosen: dict[int, Mapping[str, Any]] = {}
        """The values chosen for each trial that has been asked for any, by its number."""
        self._given = None if history is None else self._choose(history)

    def reseed_rng(self) -> None:
        self._rng = np.random.default_rng()
        self._random.reseed_rng()

    def infer_relative_search_space(
        self, study: optuna.Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        return {}  # every parameter is drawn when the space asks for it

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        return {
            name: self.sample_independent(study, trial, name, distribution)
            for name, distribution in search_space.items()
        }

    def sample_independent(
        self,
        study: optuna.Study,
        trial: FrozenTrial,
        param_name: str,
        param_distribution: BaseDistribution,
    ) -> Any:
        value = taken(param_distribution, self._values(study, trial).get(param_name))
        if value is not None:
            return value
        return self._random.sample_independent(study, trial, param_name, param_distribution)

    def before_trial(self, study: optuna.Study, trial: FrozenTrial) -> None:
        self._chosen.pop(trial.number, None)  # of another study, which never told its end

    def after_trial(
        self,
        study: optuna.Study,
        trial: FrozenTrial,
        state: StudyState,
        values: object,
    ) -> None:
        self._chosen.pop(trial.number, None)

    def _values(self, study: optuna.Study, trial: FrozenTrial) -> Mapping[str, Any]:
        """The values that are chosen for the trial."""
        if self._given is not None:
            return self._given
        if trial.number not in self._chosen:
            self._chosen[trial.number] = self._choose(study)
        return self._chosen[trial.number]

    def _choose(self, study: optuna.Study) -> Mapping[str, Any]:
        """The values of the best variation; none where all are to be drawn at random."""
        trials = study.get_trials(deepcopy=False)
        expected = self._expected(study, trials)
        if expected is None or self._rng.random() < RANDOM_SHARE:
            return {}
        return best_variation(trials, expected, self._rng)

    def _expected(self, study: optuna.Study, trials: Sequence[FrozenTrial]) -> Expectation | None:
        """Tells what to expect of recipes; None while too little is known."""
        if self._forecaster is not None:
            return self._forecaster if self._forecaster.ready else None
        known = self._learnt if self._learnt and self._learnt[0] == study.study_name else None
        complete = [t for t in trials if t.state is StudyState.COMPLETE and t.params]
        if len(complete) >= max(FEWEST, GROWTH * (known[1] if known else 0)):
            forecast = StudyForecast(complete, study.directions, seed=self._seed)
            self._learnt = known = (study.study_name, len(complete), forecast)
        return known[2] if known else None
