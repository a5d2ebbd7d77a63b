"""A pool of recorded recipes: what a searcher draws becomes the nearest one that is left."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import log
from typing import Any

import numpy as np
from optuna.samplers import BaseSampler

from search_spaces.draws import Draw, draw
from search_spaces.problem import Problem
from search_spaces.ranges import Ranges
from search_spaces.recipe import Recipe
from search_spaces.space import Space
from tests.benchmarks.search.tables import CurveTable, Entry

_LOGARITHMIC = {
    *("learning_rate", "weight_decay", "batch_size", "rank", "alpha"),
    *("one_minus_beta1", "one_minus_beta2", "epsilon", "l1", "l2"),
    *("linear_decay", "exponential_decay"),
}
"""Values that are compared on a log scale."""


class Pool:
    """Hands out each recipe of a table once for every rung, or once at all, and then all anew.

    Near is what Gower's distance over the recipe's values says, among the recipes of the same
    method if any is left: the mean of |difference| / range for numbers and of 0 or 1 for names; a
    value that only one of the two has counts as different. What a recipe aims at has no part in it.

    A space has no end, but a table has: once all are handed out they are handed out again, which
    costs a search as much and tells it nothing new.
    """

    def __init__(self, table: CurveTable, *, once: bool = False) -> None:
        """`once`: a recipe that was handed out is not handed out for another rung either."""
        self._table = table
        self._once = once
        self._gower = _Gower([entry.recipe for entry in table.entries])
        self._methods = np.array([entry.recipe.method for entry in table.entries])
        self._left = np.ones((len(table.levels), len(table.entries)), dtype=bool)
        self._row = {entry.number: row for row, entry in enumerate(table.entries)}

    def draw(
        self,
        space: Space,
        ranges: Ranges,
        problem: Problem,
        sampler: BaseSampler,
        *,
        clip: bool = False,
    ) -> Draw:
        """Draws as `search_spaces.draws.draw` does, from the table."""
        return self.snap(draw(space, ranges, problem, sampler, clip=clip))

    def snap(self, drawn: Draw) -> Draw:
        """The nearest recipe left for the rung aimed at, which is then taken."""
        rung = self._table.rung(drawn.recipe)
        entry = self.nearest(drawn.recipe, rung)
        self.take(entry.number, rung)
        return Draw(
            recipe=replace(entry.recipe, target_flops=self._table.levels[rung]),
            names=drawn.names,
            params={**_aimless(entry.params), **_aim(drawn.params)},
            distributions={**_aimless(entry.distributions), **_aim(drawn.distributions)},
        )

    def nearest(self, recipe: Recipe, rung: int) -> Entry:
        """The nearest recipe that is left for the rung."""
        left = self._left[rung]
        if not left.any():
            left[:] = True
        alike = left & (self._methods == recipe.method)
        rows = np.flatnonzero(alike if alike.any() else left)
        nearest = int(rows[np.argmin(self._gower.distances(recipe, rows))])
        return self._table.entries[nearest]

    def take(self, number: int, rung: int) -> None:
        """Marks a recipe as handed out for the rung."""
        row = self._row[number]
        if self._once:
            self._left[:, row] = False
        self._left[rung, row] = False


def _aim(named: Mapping[str, Any]) -> dict[str, Any]:
    """The part that says what is aimed at."""
    return {"target_rung": named["target_rung"]} if "target_rung" in named else {}


def _aimless(named: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in named.items() if name != "target_rung"}


class _Gower:
    """Distances from any recipe to given ones."""

    def __init__(self, recipes: Sequence[Recipe]) -> None:
        flats = [_values(recipe) for recipe in recipes]
        self._names = sorted({name for flat in flats for name in flat})
        self._numeric = {
            name: all(_is_number(flat[name]) for flat in flats if name in flat)
            for name in self._names
        }
        self._known_numbers = np.array([self._numbers(flat) for flat in flats])
        self._known_codes = np.array([self._codes(flat) for flat in flats], dtype=object)
        self._spans = _spans(self._known_numbers)

    def distances(self, recipe: Recipe, rows: Any) -> Any:
        """Gower's distance to each of the rows."""
        flat = _values(recipe)
        number, code = self._numbers(flat), self._codes(flat)
        known = self._known_numbers[rows]
        apart = np.abs(known - number) / self._spans
        apart = np.where(np.isnan(known) & np.isnan(number), 0.0, np.nan_to_num(apart, nan=1.0))
        different = self._known_codes[rows] != code
        return np.minimum(apart, 1.0).sum(axis=1) + different.sum(axis=1)

    def _numbers(self, flat: dict[str, Any]) -> Any:
        names = [name for name in self._names if self._numeric[name]]
        return np.array([_scaled(name, flat[name]) if name in flat else np.nan for name in names])

    def _codes(self, flat: dict[str, Any]) -> Any:
        names = [name for name in self._names if not self._numeric[name]]
        return np.array([str(flat.get(name)) for name in names], dtype=object)


def _spans(numbers: Any) -> Any:
    """The range of every column, 1 where it has none."""
    spans = []
    for column in numbers.T:
        known = column[~np.isnan(column)]
        span = float(known.max() - known.min()) if len(known) else 0.0
        spans.append(span or 1.0)
    return np.array(spans)


def _values(recipe: Recipe) -> dict[str, Any]:
    flat = recipe.flat()
    del flat["target_flops"], flat["method"]
    return flat


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _scaled(name: str, value: float) -> float:
    return log(max(value, 1e-12)) if name in _LOGARITHMIC else float(value)
