"""Recipes near those that are known, of which the most promising is chosen."""

from collections.abc import Mapping, Sequence
from math import exp, log
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.trial import FrozenTrial
from optuna.trial import TrialState as StudyState

from search_spaces.finetuning import TARGET

Floats = NDArray[np.float64]

CANDIDATES = 128
"""Variations of which the one that is expected to gain most is chosen."""
HISTORY = 256
"""Recipes of the history, the newest ones, that variations are made of."""
PARENTS = 24
"""Recipes that are varied: those with the best expected rank."""
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


class Expectation(Protocol):
    """Tells what to expect of recipes, given as the values of their parameters."""

    def gains(self, recipes: Sequence[Mapping[str, Any]]) -> Floats:
        """How much each recipe is expected to gain over what is known: [recipes]."""

    def best_ranks(self, recipes: Sequence[Mapping[str, Any]]) -> Floats:
        """The best rank, from 0, that each recipe is expected to have in any respect: [recipes]."""


def best_variation(
    known: Sequence[FrozenTrial], expected: Expectation, rng: np.random.Generator
) -> Mapping[str, Any]:
    """Returns the values of the variation of known trials that is expected to gain most.

    Conditional parameters come with the recipe that had them. There are no values where the trials
    are too few.
    """
    trials = _recipes(known)
    if len(trials) < FEWEST:
        return {}
    ranks = expected.best_ranks([trial.params for trial in trials])
    parents = [trials[int(row)] for row in np.argsort(ranks, kind="stable")[:PARENTS]]
    candidates = [_variation(parents, trials, rng) for _ in range(CANDIDATES)]
    return candidates[int(np.argmax(expected.gains(candidates)))]


def taken(distribution: BaseDistribution, value: Any) -> Any:
    """Returns the value as the distribution has it; None where it does not offer it."""
    if isinstance(distribution, CategoricalDistribution):
        return next(
            (c for c in distribution.choices if type(c) is type(value) and c == value), None
        )
    assert isinstance(distribution, FloatDistribution | IntDistribution)
    if not isinstance(value, int | float) or isinstance(value, bool):
        return None
    if not distribution._contains(value):
        return None
    return int(value) if isinstance(distribution, IntDistribution) else float(value)


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


def _variation(
    parents: Sequence[FrozenTrial], trials: Sequence[FrozenTrial], rng: np.random.Generator
) -> Mapping[str, Any]:
    """A recipe near a parent, between one and any other, or anywhere."""
    donor = trials[int(rng.integers(len(trials)))]
    parent = parents[int(rng.integers(len(parents)))]
    kind = rng.random()
    if kind < FRESH_SHARE:
        return {
            name: donor.params[name] if _is_choice(known) else _anywhere(known, rng)
            for name, known in donor.distributions.items()
        }
    if kind < FRESH_SHARE + CROSSED_SHARE:
        return {
            name: parent.params[name] if _inherits(parent, name, known, rng) else value
            for (name, value), known in zip(
                donor.params.items(), donor.distributions.values(), strict=True
            )
        }
    return {
        name: _near(known, parent.params[name], rng)
        if rng.random() < VARIED_SHARE
        else parent.params[name]
        for name, known in parent.distributions.items()
    }


def _inherits(
    parent: FrozenTrial, name: str, known: BaseDistribution, rng: np.random.Generator
) -> bool:
    """Whether a value comes from the parent: choices hold a recipe together and do not."""
    fits = name in parent.params and not _is_choice(known)
    return fits and rng.random() < INHERITED_SHARE


def _is_choice(distribution: BaseDistribution) -> bool:
    return isinstance(distribution, CategoricalDistribution)


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
    lowest, highest = _ends(distribution)
    at = min(max(at, lowest), highest)
    value = min(max(exp(at) if distribution.log else at, low), high)
    if distribution.step:
        steps = min(round((value - low) / distribution.step), int((high - low) / distribution.step))
        value = min(low + steps * distribution.step, high)
    return round(value) if isinstance(distribution, IntDistribution) else float(value)
