"""A forecast of a study's values, where no learning curves are known."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial
from sklearn.ensemble import ExtraTreesRegressor

from orchestrator.search.excerpt import is_feasible
from orchestrator.search.forecast import LEAF, ROWS, TREES, Curve, columns

Floats = NDArray[np.float64]

GOOD_SHARE = 0.25
"""Share of the trials that count as good."""
WEIGHTINGS = 16
"""Weightings of several objectives, in each of which recipes are compared."""
SUM_WEIGHT = 0.05
"""Weight of the sum besides the largest, so that what is worse in one objective alone is worse."""


class StudyForecast:
    """Expects of recipes what randomised trees make of the values of a study's trials.

    Values count by their rank alone, 0 for the best and 1 for the worst, whatever their number and
    scale. Several objectives are weighed against one another at random: with weights w and ranks r
    a recipe is worth max wᵢrᵢ + 0.05 Σ wᵢrᵢ, the lower the better (ParEGO, Knowles 2006). It gains
    what it is better by than the worst of the best quarter, on average over trees and weightings:
    no tree expects anything better than the best. A trial that violates a constraint is worst.
    """

    def __init__(
        self, trials: Sequence[FrozenTrial], directions: Sequence[StudyDirection], *, seed: int
    ) -> None:
        """`trials` are two or more that have finished, all with parameters."""
        ranks = _ranks(trials, directions)
        weightings = WEIGHTINGS if len(directions) > 1 else 1
        rng = np.random.default_rng(seed)
        self._weights = rng.dirichlet(np.ones(len(directions)), weightings)
        self._good = np.quantile(self._worth(ranks), GOOD_SHARE, axis=0)
        self._columns = columns(
            [
                Curve(params=t.params, distributions=t.distributions, target_flops=1.0, points=())
                for t in trials
            ]
        )
        self._forest = ExtraTreesRegressor(
            n_estimators=TREES,
            min_samples_leaf=LEAF,
            max_features=0.5,
            bootstrap=True,
            max_samples=min(ROWS, len(trials)),
            random_state=seed,
        ).fit(self._rows([t.params for t in trials]), ranks if len(directions) > 1 else ranks[:, 0])

    def gains(self, recipes: Sequence[Mapping[str, Any]]) -> Floats:
        """How much better than the good trials each recipe is expected to be: [recipes]."""
        worth = self._worth(self._expected(recipes))
        gains: Floats = np.maximum(0.0, self._good - worth).mean(axis=(0, 2))
        return gains

    def best_ranks(self, recipes: Sequence[Mapping[str, Any]]) -> Floats:
        """The best rank, from 0, that each recipe is expected to have in a weighting: [recipes]."""
        worth = self._worth(self._expected(recipes)).mean(axis=0)
        ranks: Floats = worth.argsort(axis=0).argsort(axis=0).min(axis=1).astype(float)
        return ranks

    def _expected(self, recipes: Sequence[Mapping[str, Any]]) -> Floats:
        """The ranks that each tree expects: [trees, recipes, objectives]."""
        rows = self._rows(recipes)
        trees = [tree.tree_.predict(rows) for tree in self._forest.estimators_]
        return np.array(trees).reshape(len(trees), len(recipes), self._weights.shape[1])

    def _worth(self, ranks: Floats) -> Floats:
        """The worth of ranks [..., objectives] by every weighting: [..., weightings]."""
        weighed = ranks[..., None, :] * self._weights
        worth: Floats = weighed.max(axis=-1) + SUM_WEIGHT * weighed.sum(axis=-1)
        return worth

    def _rows(self, recipes: Sequence[Mapping[str, Any]]) -> NDArray[np.float32]:
        limit = float(np.finfo(np.float32).max)
        rows = np.array([[column.of(params) for column in self._columns] for params in recipes])
        narrow: NDArray[np.float32] = np.clip(rows, -limit, limit).astype(np.float32)
        return narrow


def _ranks(trials: Sequence[FrozenTrial], directions: Sequence[StudyDirection]) -> Floats:
    """The share of other values that is better than each: [trials, objectives]."""
    values = np.array([trial.values for trial in trials], dtype=np.float64)
    values *= [-1.0 if d is StudyDirection.MAXIMIZE else 1.0 for d in directions]
    values[[not is_feasible(trial) for trial in trials]] = np.inf
    better = [np.searchsorted(np.sort(column), column) for column in values.T]
    ranks: Floats = np.stack(better, axis=1) / (len(trials) - 1)
    return ranks
