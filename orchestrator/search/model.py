"""Recipes of which a forecast expects most."""

from collections.abc import Mapping, Sequence
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

CANDIDATES = 128
RANDOM_SHARE = 0.2
PARENTS = 24
STEP = 0.15


def model(forecaster: Forecaster) -> MakeDraws:
    """Draws what the forecaster expects most of, among variations of what was tried."""

    def draws(history: optuna.Study, seed: int) -> BaseSampler:
        return ModelSampler(forecaster, history, seed=seed)

    return draws


class ModelSampler(BaseSampler):
    """Chooses one variation of the history's recipes and hands its values out as they are asked."""

    def __init__(self, forecaster: Forecaster, history: optuna.Study, *, seed: int) -> None:
        self._history = history
        self._rng = np.random.default_rng(seed)
        self._random = RandomSampler(seed=seed)
        self._forecaster = forecaster
        self._chosen: Mapping[str, Any] = self._choose()

    def infer_relative_search_space(
        self, study: optuna.Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        return {}

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
        if param_name in self._chosen:
            value = self._chosen[param_name]
            if _offers(param_distribution, value):
                return value
        return self._random.sample_independent(study, trial, param_name, param_distribution)

    def _choose(self) -> Mapping[str, Any]:
        if self._forecaster.forecast is None or self._rng.random() < RANDOM_SHARE:
            return {}
        trials = [
            t for t in self._history.get_trials(deepcopy=False) if t.params and t.state is not StudyState.FAIL
        ]
        if len(trials) < 4:
            return {}
        unique: dict[str, FrozenTrial] = {}
        for t in trials:
            unique[repr(sorted((k, v) for k, v in t.params.items() if k != "target_rung"))] = t
        trials = list(unique.values())
        parents = self._parents(trials)
        candidates = [self._variation(parents, trials) for _ in range(CANDIDATES)]
        gains = self._forecaster.gains(candidates, highest=len(self._forecaster._levels) - 1)
        return candidates[int(np.argmax(gains))]

    def _parents(self, trials: Sequence[FrozenTrial]) -> Sequence[FrozenTrial]:
        logits = self._forecaster.forecast.logits([t.params for t in trials], self._forecaster._levels).mean(axis=0)
        ranks = logits.argsort(axis=0).argsort(axis=0).min(axis=1)
        order = np.argsort(ranks, kind="stable")[:PARENTS]
        return [trials[i] for i in order]

    def _variation(self, parents: Sequence[FrozenTrial], trials: Sequence[FrozenTrial]) -> Mapping[str, Any]:
        rng = self._rng
        kind = rng.random()
        if kind < 0.3:  # a recipe of the history, its values drawn anew
            donor = trials[rng.integers(len(trials))]
            return {
                n: _uniform(d, rng) if not isinstance(d, CategoricalDistribution) else donor.params[n]
                for n, d in donor.distributions.items()
            }
        parent = parents[rng.integers(len(parents))]
        if kind < 0.5:  # its values in the structure of another
            donor = trials[rng.integers(len(trials))]
            child = dict(donor.params)
            for n, d in donor.distributions.items():
                if n in parent.params and not isinstance(d, CategoricalDistribution):
                    child[n] = parent.params[n] if rng.random() < 0.7 else child[n]
            return child
        child = dict(parent.params)
        rate = max(0.2, 1 / max(1, len(child)))
        for n, d in parent.distributions.items():
            if rng.random() < rate:
                child[n] = _near(d, child[n], rng)
        return child


def _offers(distribution: BaseDistribution, value: Any) -> bool:
    if isinstance(distribution, CategoricalDistribution):
        return value in distribution.choices
    try:
        return bool(distribution._contains(distribution.to_internal_repr(value)))
    except (TypeError, ValueError):
        return False


def _uniform(d: BaseDistribution, rng: np.random.Generator) -> Any:
    assert isinstance(d, FloatDistribution | IntDistribution)
    low, high = (np.log(d.low), np.log(d.high)) if d.log else (d.low, d.high)
    return _fitting(d, rng.uniform(low, high))


def _near(d: BaseDistribution, value: Any, rng: np.random.Generator) -> Any:
    if isinstance(d, CategoricalDistribution):
        return d.choices[rng.integers(len(d.choices))]
    assert isinstance(d, FloatDistribution | IntDistribution)
    low, high = (np.log(d.low), np.log(d.high)) if d.log else (d.low, d.high)
    at = np.log(value) if d.log else value
    return _fitting(d, float(np.clip(at + rng.normal(0, STEP) * (high - low), low, high)))


def _fitting(d: FloatDistribution | IntDistribution, at: float) -> Any:
    value = float(np.exp(at)) if d.log else float(at)
    value = min(max(value, d.low), d.high)
    if d.step:
        value = d.low + round((value - d.low) / d.step) * d.step
        if value > d.high:
            value -= d.step
    return int(round(value)) if isinstance(d, IntDistribution) else float(value)
