"""Shrinkage: the error to expect of a model whose measured error is the lowest of many.

With a few hundred validation images some models are measured better than they are, and the lowest
of many errors is most likely one of theirs. What is known of all the errors at a rung tells by how
much.
"""

import math
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

SHARED_VARIANCE = 0.5
"""The part of an error's sampling variance that all models share, because hard images are hard for
all of them: it moves the whole frontier and makes nobody lead. On the recorded tables errors on two
halves of the validation images differ by 0.5 of e(1-e)/n once the tasks' means are taken out."""
CONFIRMING_WEIGHT = 1 / 3
"""The weight of the errors of a recipe's other runs next to that of a model's own: seeds make more
of a difference between models than the sample of images does. On the recorded tables 3 to 1
predicts the error on other images best."""
_GRID = 200
_STEPS = 40
"""Steps of expectation and maximisation. More would end in a few atoms; a start from an even
distribution and an early end keep it smooth (Laird & Louis 1991)."""


class Shrinkage:
    """Tells what errors are expected to be from all that were measured at a rung.

    With x a measured error, m the images it says something of and p the true error,

        log L(x | p) = m · (x log p + (1 - x) log(1 - p)),    m = images / (1 - SHARED_VARIANCE),
        E[p | x] = Σ p P(p) L(x | p) / Σ P(p) L(x | p).

    The distribution P of true errors comes from the measured ones by maximum likelihood, on a grid
    (nonparametric empirical Bayes: Robbins 1956; Kiefer & Wolfowitz 1956). So where many recipes
    are about equally good the best is expected to be little better than they are; one that is far
    ahead of all others keeps its lead.
    """

    def __init__(self, errors: Iterable[float], *, images: int) -> None:
        """`errors` are all that were measured, 0-1, on so many validation images."""
        if images < 1:
            raise ValueError(f"images={images} must be at least 1: errors are shares of images.")
        self._images = images / (1 - SHARED_VARIANCE)
        self._grid = np.sin((np.arange(_GRID) + 0.5) * (math.pi / 2 / _GRID)) ** 2  # dense at ends
        self._logs = np.log(self._grid), np.log1p(-self._grid)
        self._known: dict[float, float] = {}
        """Expected by measured error, of recipes that were run once."""
        self._log_prior = self._fitted(np.array(list(errors), dtype=np.float64))

    def expected(self, error: float, *, others: Sequence[float] = ()) -> float:
        """Returns the error to expect of a model that was measured at `error`.

        `others` are the errors of the same recipe's runs with other seeds.
        """
        if others:
            return self._mean(error, sum(others) / len(others))
        if error not in self._known:
            self._known[error] = self._mean(error, None)
        return self._known[error]

    def _mean(self, error: float, other: float | None) -> float:
        if not math.isfinite(error):
            return error
        logs = self._log_prior + self._log_likelihood(np.array([error]))[0]
        if other is not None and math.isfinite(other):
            logs += CONFIRMING_WEIGHT * self._log_likelihood(np.array([other]))[0]
        weights = np.exp(logs - logs.max())
        return float(weights @ self._grid / weights.sum())

    def _log_likelihood(self, errors: Floats) -> Floats:
        """Returns log L, up to what does not depend on p; shape [errors, grid]."""
        right, wrong = 1 - errors[:, None], errors[:, None]
        logs: Floats = self._images * (wrong * self._logs[0] + right * self._logs[1])
        return logs

    def _fitted(self, errors: Floats) -> Floats:
        """Returns log P by expectation and maximisation from an even start; shape [grid]."""
        values, counts = np.unique(errors[np.isfinite(errors)], return_counts=True)
        prior = np.full(_GRID, 1 / _GRID)
        if len(values):
            logs = self._log_likelihood(values)
            likelihood = np.exp(logs - logs.max(axis=1, keepdims=True))
            shares = counts / counts.sum()
            for _ in range(_STEPS):
                prior = prior * ((shares / (likelihood @ prior)) @ likelihood)
        log_prior: Floats = np.log(np.maximum(prior, np.finfo(np.float64).tiny))
        return log_prior
