"""A forecast of learning curves from those that a sweep has measured so far."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import log10
from typing import Any

import numpy as np
from numpy.typing import NDArray
from optuna.distributions import BaseDistribution, FloatDistribution, IntDistribution
from sklearn.ensemble import ExtraTreesRegressor
from sklearn.linear_model import Ridge

from search_spaces.finetuning import TARGET

TREES = 64
"""Trees of the forest, each of which tells one curve of a recipe that may be true."""
LEAF = 2
"""Points that a leaf of a tree holds at least."""
ROWS = 2000
"""Points that a tree is grown on at most: fitting takes no longer however many there are."""
SHARPEST = 0.002
"""Errors are clipped so far from 0 and 1 before their logit is taken."""
MEMORY = 0.8
"""Share of what a measurement missed its forecast by that is carried on to the next rung."""

LOSS_WEIGHT = 1.0
"""Weight of the loss beside the error, both of unit spread, where the trees are split."""

Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Curve:
    """A trial as the forecast sees it."""

    params: Mapping[str, Any]
    """The values that the sampler chose."""
    distributions: Mapping[str, BaseDistribution]
    """Their distributions."""
    target_flops: float
    """Training FLOPs that its schedule aims at."""
    points: Sequence[tuple[float, float, float]]
    """Training FLOPs, validation error (0-1) and loss of each measurement."""


class Forecast:
    """Errors to expect of recipes at levels of compute, many times over.

    The logit of the error is the sum of a linear trend over the recipe's values and the logarithm
    of compute (ridge regression), which reaches beyond the levels that were measured, and of what
    randomised trees (Geurts et al. 2006) grown on bootstraps of the rest make of it. The
    disagreement of the trees is the doubt. Values that a recipe does not have are missing to the
    trees and average to the trend.
    """

    def __init__(self, curves: Sequence[Curve], *, seed: int) -> None:
        """Raises `ValueError` where the curves have fewer than two points together."""
        points = [(curve, *point) for curve in curves for point in curve.points]
        if len(points) < 2:
            raise ValueError(f"{len(points)} measured points are too few for a forecast.")
        self._columns = columns(curves)
        values = np.array([self._values(curve) for curve in curves])
        owners = np.repeat(np.arange(len(curves)), [len(curve.points) for curve in curves])
        compute = np.array([[log10(f), log10(c.target_flops / f)] for c, f, *_ in points])
        rows = np.hstack([values[owners], compute])
        wanted = logit(np.array([error for *_, error, _ in points]))
        losses = np.log(np.clip([loss for *_, loss in points], 1e-3, 1e3))
        self._means = np.array([_mean(column) for column in rows.T])
        self._scales = np.array([_scale(column) for column in rows.T])
        self._trend = Ridge(alpha=1.0).fit(self._dense(rows), wanted)
        rest = wanted - self._trend.predict(self._dense(rows))
        loss_trend = Ridge(alpha=1.0).fit(self._dense(rows), losses)
        losses = losses - loss_trend.predict(self._dense(rows))
        self._spread = _scale(rest)
        rest = np.stack([rest / self._spread, LOSS_WEIGHT * losses / _scale(losses)], axis=1)
        self._forest = ExtraTreesRegressor(
            n_estimators=TREES,
            min_samples_leaf=LEAF,
            max_features=0.5,
            bootstrap=True,
            max_samples=min(ROWS, len(rows)),
            random_state=seed,
        ).fit(rows, rest)

    def logits(self, recipes: Sequence[Mapping[str, Any]], levels: Sequence[float]) -> Floats:
        """Logits of the error, [trees, recipes, levels], of recipes that end at each level.

        `recipes` are given as the sampler's values.
        """
        none: Mapping[str, BaseDistribution] = {}
        values = [
            self._values(Curve(params=p, distributions=none, target_flops=1.0, points=()))
            for p in recipes
        ]
        rows = np.repeat(np.array(values), len(levels), axis=0)
        compute = np.tile([[log10(level), 0.0] for level in levels], (len(recipes), 1))
        rows = np.hstack([rows, compute])
        trend = self._trend.predict(self._dense(rows))
        narrow = rows.astype(np.float32)
        trees = [tree.tree_.predict(narrow)[:, 0, 0] for tree in self._forest.estimators_]
        shape = (len(trees), len(recipes), len(levels))
        logits: Floats = (np.array(trees) * self._spread + trend).reshape(shape)
        return logits

    def _values(self, curve: Curve) -> list[float]:
        return [column.of(curve.params) for column in self._columns]

    def _dense(self, rows: Floats) -> Floats:
        """The rows without gaps, each column centred and scaled."""
        filled = np.where(np.isnan(rows), self._means, rows)
        dense: Floats = (filled - self._means) / self._scales
        return dense


@dataclass(frozen=True, kw_only=True)
class Column:
    """A number that the trees split by: a value, or whether it is a certain choice."""

    name: str
    log: bool = False
    choice: str | None = None

    def of(self, params: Mapping[str, Any]) -> float:
        if self.name not in params:
            return float("nan")
        value = params[self.name]
        if self.choice is not None:
            return float(repr(value) == self.choice)
        if not isinstance(value, int | float) or (self.log and value <= 0):
            return float("nan")  # other recipes have it from another kind of range
        return log10(value) if self.log else float(value)


def columns(curves: Sequence[Curve]) -> list[Column]:
    """The columns of all parameters that a curve has, in alphabetical order.

    A parameter that one trial chose from a list and another from a range counts as chosen.
    """
    known: dict[str, dict[Column, None]] = {}
    for curve in curves:
        for name, distribution in curve.distributions.items():
            if name == TARGET:
                continue
            own = known.setdefault(name, {})
            if isinstance(distribution, IntDistribution | FloatDistribution):
                own[Column(name=name, log=distribution.log)] = None
            else:
                own[Column(name=name, choice=repr(curve.params[name]))] = None
    return [column for name in sorted(known) for column in known[name]]


def logit(errors: Floats) -> Floats:
    """The logarithm of the odds of errors, 0-1, the certain ones a little less so."""
    clipped = np.clip(errors, SHARPEST, 1 - SHARPEST)
    odds: Floats = np.log(clipped / (1 - clipped))
    return odds


def error_of(logits: Floats) -> Floats:
    """The errors, 0-1, whose logits are given."""
    errors: Floats = (1 + np.tanh(logits / 2)) / 2  # the logistic function, which never overflows
    return errors


def carried_on(logits: Floats, measured: Floats, rungs: Sequence[int]) -> Floats:
    """The forecasts [trees, trials, levels] of trials whose last rung's error is known.

    What each tree missed the measured logit [trials] at the trial's rung by is carried on to the
    other levels, the less the further they are.
    """
    at = np.asarray(rungs)
    here = logits[:, np.arange(len(at)), at]
    missed = measured[None, :] - here
    distance = np.abs(np.arange(logits.shape[2])[None, :] - at[:, None])
    carried: Floats = logits + missed[:, :, None] * (MEMORY**distance)[None]
    return carried


def _mean(column: Floats) -> float:
    known = column[~np.isnan(column)]
    return float(known.mean()) if len(known) else 0.0


def _scale(column: Floats) -> float:
    known = column[~np.isnan(column)]
    spread = float(known.std()) if len(known) else 0.0
    return spread or 1.0
