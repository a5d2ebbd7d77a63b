"""Recipes of which a forecast expects most."""

from collections.abc import Mapping, Sequence
from math import exp, log
from typing import Any

import numpy as np
import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.samplers import BaseSampler, RandomSampler
from optuna.trial import FrozenTrial
from optuna.trial import TrialState as StudyState

from orchestrator.search.forecaster import Forecaster
from orchestrator.search.sampler import MakeDraws
from search_spaces.finetuning import TARGET

CANDIDATES = 128
"""Recipes of which the one that is expected to gain most is drawn."""
RANDOM_SHARE = 0.2
"""Share of recipes that are drawn at random however good the forecast is."""
HISTORY = 256
"""Recipes of the history, the newest ones, that variations are made of."""
PARENTS = 24
"""Recipes that are varied: those with the best expected rank at any rung."""
FRESH_SHARE, CROSSED_SHARE = 0.3, 0.2
"""Shares of the candidates that are drawn anew, and that are crossed; the rest are varied."""
INHERITED_SHARE = 0.7
"""Share of the values that a crossed recipe has from the better of its two parents."""
VARIED_SHARE = 0.2
"""Share of its values that a varied recipe changes."""
STEP = 0.15
"""Standard deviation of a change, in parts of the value's range."""
FEWEST = 4
"""Recipes that variations are made of at least."""


def model(forecaster: Forecaster) -> MakeDraws:
    """Draws the recipes that the forecaster expects most of, among variations of the history's."""

    def draws(history: optuna.Study, seed: int) -> BaseSampler:
        return ModelSampler(forecaster, history, seed=seed)

    return draws


class ModelSampler(BaseSampler):
    """Chooses one variation of the history's recipes and hands out its values as they are asked.

    It knows of the space what its history has asked: conditional parameters come with the recipe
    that had them, and what the chosen recipe lacks is drawn at random.
    """

    def __init__(self, forecaster: Forecaster, history: optuna.Study, *, seed: int) -> None:
        self._forecaster = forecaster
        self._rng = np.random.default_rng(seed)
        self._random = RandomSampler(seed=seed)
        self._chosen = self._choose(history)

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
        value = self._chosen.get(param_name)
        if value is not None and _offers(param_distribution, value):
            return value
        return self._random.sample_independent(study, trial, param_name, param_distribution)

    def _choose(self, history: optuna.Study) -> Mapping[str, Any]:
        """The values of the best variation; none where all are to be drawn at random."""
        if not self._forecaster.ready or self._rng.random() < RANDOM_SHARE:
            return {}
        trials = _recipes(history.get_trials(deepcopy=False))
        if len(trials) < FEWEST:
            return {}
        ranks = self._forecaster.best_ranks([trial.params for trial in trials])
        parents = [trials[int(row)] for row in np.argsort(ranks, kind="stable")[:PARENTS]]
        candidates = [self._variation(parents, trials) for _ in range(CANDIDATES)]
        return candidates[int(np.argmax(self._forecaster.gains(candidates)))]

    def _variation(
        self, parents: Sequence[FrozenTrial], trials: Sequence[FrozenTrial]
    ) -> Mapping[str, Any]:
        """A recipe near a parent, between one and any other, or anywhere."""
        donor = trials[int(self._rng.integers(len(trials)))]
        parent = parents[int(self._rng.integers(len(parents)))]
        kind = self._rng.random()
        if kind < FRESH_SHARE:
            return {
                name: donor.params[name] if _is_choice(known) else _anywhere(known, self._rng)
                for name, known in donor.distributions.items()
            }
        if kind < FRESH_SHARE + CROSSED_SHARE:
            return {
                name: parent.params[name] if self._inherits(parent, name, known) else value
                for (name, value), known in zip(
                    donor.params.items(), donor.distributions.values(), strict=True
                )
            }
        return {
            name: _near(known, parent.params[name], self._rng)
            if self._rng.random() < VARIED_SHARE
            else parent.params[name]
            for name, known in parent.distributions.items()
        }

    def _inherits(self, parent: FrozenTrial, name: str, known: BaseDistribution) -> bool:
        """Whether a value comes from the parent: choices hold a recipe together and do not."""
        fits = name in parent.params and not _is_choice(known)
        return fits and self._rng.random() < INHERITED_SHARE


def _recipes(trials: Sequence[FrozenTrial]) -> Sequence[FrozenTrial]:
    """The newest trials of different recipes, whatever they aim at."""
    known: dict[tuple[tuple[str, Any], ...], FrozenTrial] = {}
    for trial in reversed(trials):
        if len(known) == HISTORY:
            break
        if trial.params and trial.state is not StudyState.FAIL:
            values = tuple((n, v) for n, v in sorted(trial.params.items()) if n != TARGET)
            known.setdefault(values, trial)
    return list(known.values())[::-1]


def _is_choice(distribution: BaseDistribution) -> bool:
    return isinstance(distribution, CategoricalDistribution)


def _offers(distribution: BaseDistribution, value: Any) -> bool:
    """Whether a space that asks for the distribution may be given the value."""
    if isinstance(distribution, CategoricalDistribution):
        return value in distribution.choices
    assert isinstance(distribution, FloatDistribution | IntDistribution)
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return is_number and distribution.low <= value <= distribution.high


def _anywhere(distribution: BaseDistribution, rng: np.random.Generator) -> Any:
    assert isinstance(distribution, FloatDistribution | IntDistribution)
    return _fitting(distribution, rng.uniform(*_ends(distribution)))


def _near(distribution: BaseDistribution, value: Any, rng: np.random.Generator) -> Any:
    if isinstance(distribution, CategoricalDistribution):
        return distribution.choices[int(rng.integers(len(distribution.choices)))]
    assert isinstance(distribution, FloatDistribution | IntDistribution)
    low, high = _ends(distribution)
    at = log(value) if distribution.log else float(value)
    return _fitting(distribution, at + rng.normal(0, STEP) * (high - low))


def _ends(distribution: FloatDistribution | IntDistribution) -> tuple[float, float]:
    """The ends of its range, on the scale on which it is even."""
    if distribution.log:
        return log(distribution.low), log(distribution.high)
    return float(distribution.low), float(distribution.high)


def _fitting(distribution: FloatDistribution | IntDistribution, at: float) -> int | float:
    """The value of the distribution that is nearest, `at` being on the even scale."""
    low, high = distribution.low, distribution.high
    value = min(max(exp(at) if distribution.log else at, low), high)
    if distribution.step:
        steps = min(round((value - low) / distribution.step), int((high - low) / distribution.step))
        value = low + steps * distribution.step
    return round(value) if isinstance(distribution, IntDistribution) else float(value)
