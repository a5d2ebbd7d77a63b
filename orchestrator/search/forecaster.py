"""The forecaster: a forecast kept up with the field of a race, and what it makes of recipes."""

import functools
from collections.abc import Mapping, Sequence
from math import isfinite
from typing import Any

import numpy as np
from optuna.distributions import BaseDistribution, json_to_distribution

from orchestrator.search.field import Field
from orchestrator.search.forecast import Curve, Floats, Forecast, carried_on, error_of, logit
from orchestrator.store.ledger import TrialRecord, TrialState

FEWEST = 8
"""Trials with a point that a forecast is made of at least."""
GROWTH = 1.15
"""A new forecast is made when there are so many times as many points."""
WORST_ERROR = 1.0
"""The error that a diverged trial counts as having at its aim."""
WORST_LOSS = 1e3
"""Its loss, likewise, in nats."""


class Forecaster:
    """Tells which recipes are expected to gain most, from all that the field has measured."""

    def __init__(self, *, seed: int) -> None:
        self._seed = seed
        self._made_of = 0
        self.forecast: Forecast | None = None
        self._levels: Sequence[float] = ()
        self._frontier: Floats = np.zeros(0)

    @property
    def ready(self) -> bool:
        """Whether enough was measured for a forecast."""
        return self.forecast is not None

    def learn(self, field: Field) -> None:
        """Makes a new forecast where the field has grown enough."""
        self._levels = field.levels
        self._frontier = field.frontier()
        points = field.points
        if points < FEWEST or points < GROWTH * self._made_of:
            return
        curves = [curve for trial in field.trials() if (curve := _curve(trial)) is not None]
        if sum(len(curve.points) for curve in curves) < FEWEST:
            return
        self._made_of = points
        self.forecast = Forecast(curves, seed=self._seed)

    def gains(self, recipes: Sequence[Mapping[str, Any]]) -> Floats:
        """Expected hypervolume that new recipes add: [recipes], in rungs times error."""
        return self._gain(self._logits(recipes), lowest=0)

    def best_ranks(self, recipes: Sequence[Mapping[str, Any]]) -> Floats:
        """The best rank, from 0, that each recipe is expected to have at any rung: [recipes]."""
        expected = self._logits(recipes).mean(axis=0)
        ranks: Floats = expected.argsort(axis=0).argsort(axis=0).min(axis=1).astype(float)
        return ranks

    def further_gains(self, trials: Sequence[TrialRecord], *, rung: int) -> Floats:
        """Expected hypervolume that trials add which go on from below `rung`: [trials]."""
        logits = self._logits([trial.params for trial in trials])
        measured = logit(np.array([trial.measurements[-1].val_error for trial in trials]))
        at = [min(rung - 1, trial.measurements[-1].rung) for trial in trials]
        return self._gain(carried_on(logits, measured, at), lowest=rung)

    def _logits(self, recipes: Sequence[Mapping[str, Any]]) -> Floats:
        """Logits of the error at every rung: [trees, recipes, rungs]."""
        assert self.forecast is not None  # asked only when it is ready
        return self.forecast.logits(recipes, self._levels)

    def _gain(self, logits: Floats, *, lowest: int) -> Floats:
        errors = np.minimum.accumulate(error_of(logits[:, :, lowest:]), axis=2)
        frontier = self._frontier[lowest : lowest + errors.shape[2]]
        gains: Floats = np.maximum(0.0, frontier - errors).sum(axis=2).mean(axis=0)
        return gains


def _curve(trial: TrialRecord) -> Curve | None:
    points = [
        (m.train_flops, m.val_error, m.val_loss)
        for m in trial.measurements
        if isfinite(m.val_error) and isfinite(m.val_loss)
    ]
    if trial.state is TrialState.DIVERGED:
        points = [*points, (trial.recipe.target_flops, WORST_ERROR, WORST_LOSS)]
    if not points:
        return None
    return Curve(
        params=trial.params,
        distributions={n: _distribution(text) for n, text in trial.distributions.items()},
        target_flops=trial.recipe.target_flops,
        points=points,
    )


@functools.lru_cache(maxsize=4096)
def _distribution(text: str) -> BaseDistribution:
    distribution: BaseDistribution = json_to_distribution(text)
    return distribution
