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
CONFIRMING_WEIGHT = 0.1
"""The weight of what a recipe's other runs reach next to what a model itself does: seeds make more
of a difference between models than the sample of images does. On the recorded tables they move an
error by 0.05, and 10 to 1 predicts a model's error on other images best; the plain mean of both
runs is further from it than the model's own error."""
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
        """Expected by measured error, of models alone."""
        self._log_prior = self._fitted(np.array(list(errors), dtype=np.float64))

    def expected(self, error: float, *, others: Sequence[float] = ()) -> float:
        """Returns the error to expect of a model that was measured at `error`.

        `others` are the errors of the same recipe's runs with other seeds. The mean of what is
        expected of them weighs `CONFIRMING_WEIGHT`, and what is expected of the model's own 1.
        """
        known = [self._alone(other) for other in others if math.isfinite(other)]
        if not known:
            return self._alone(error)
        mean = sum(known) / len(known)
        return (self._alone(error) + CONFIRMING_WEIGHT * mean) / (1 + CONFIRMING_WEIGHT)

    def _alone(self, error: float) -> float:
        if error not in self._known:
            logs = self._log_prior + self._log_likelihood(np.array([error]))[0]
            weights = np.exp(logs - logs.max())
            self._known[error] = float(weights @ self._grid / weights.sum())
        return self._known[error]

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
