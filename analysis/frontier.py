"""The compute-optimal frontier: the measurements that no other beats on compute and error."""

import math
from bisect import bisect_right
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from search_spaces.recipe import Setting
from trainables.measurement import Measurement


@dataclass(frozen=True, kw_only=True)
class FrontierPoint:
    """One measurement, with the trial and the recipe that it was made of."""

    trial_id: str
    """The trial that was measured."""
    number: int
    """The trial's place in the order of suggestion, from 0."""
    measurement: Measurement
    """Everything that was measured."""
    recipe: Mapping[str, Setting]
    """The recipe, one level of names."""
    expected_error: float | None = None
    """The error, 0-1, to expect on new images (`analysis.shrinkage`); `None` if unknown."""
    confirming_error: float | None = None
    """The mean validation error, 0-1, of the recipe's runs with other seeds at this rung; `None`
    if there were none."""

    def __post_init__(self) -> None:
        _checked_compute(self.train_flops)
        _checked_error(self.val_error)
        if self.expected_error is not None:
            _checked_error(self.expected_error, name="expected_error")

    @property
    def rung(self) -> int:
        """Index of the compute level at which it was measured, from 0."""
        return self.measurement.rung

    @property
    def train_flops(self) -> float:
        """Training FLOPs that the recipe had spent, cumulative: the first axis."""
        return self.measurement.train_flops

    @property
    def val_error(self) -> float:
        """Share of validation images classified wrongly, 0-1: the second axis."""
        return self.measurement.val_error

    @property
    def error(self) -> float:
        """The error that selects: the expected one, or the measured one where that is unknown."""
        return self.val_error if self.expected_error is None else self.expected_error

    @property
    def test_error(self) -> float | None:
        """Share of test images classified wrongly, reported and never chosen by."""
        return self.measurement.test_error

    def to_dict(self) -> dict[str, Any]:
        """Returns JSON types: all on one level, and the recipe nested.

        A number that is not finite, which JSON cannot hold, becomes `None`.
        """
        measured = {
            name: value if value is None or math.isfinite(value) else None
            for name, value in self.measurement.to_dict().items()
        }
        trial = {"trial_id": self.trial_id, "number": self.number}
        expected = {
            "expected_error": self.expected_error,
            "confirming_error": self.confirming_error,
        }
        return trial | measured | expected | {"recipe": dict(self.recipe)}

    @property
    def log10_flops(self) -> float:
        """Training compute in decades, the axis on which frontiers are compared."""
        return math.log10(self.train_flops)


@dataclass(frozen=True)
class Frontier:
    """Non-dominated points, ascending in compute and strictly descending in validation error.

    Immutable. `Frontier().merge(points)` builds one; merging is associative and does not depend
    on the order of the points, so partial frontiers of shards or resumed sweeps may be joined in
    any way.
    """

    points: tuple[FrontierPoint, ...] = ()
    """Ascending `train_flops`, strictly descending `val_error`."""

    def __post_init__(self) -> None:
        for left, right in pairwise(self.points):
            if left.train_flops >= right.train_flops or left.val_error <= right.val_error:
                raise ValueError(
                    f"Point {right.trial_id} rung {right.rung} does not follow "
                    f"{left.trial_id} rung {left.rung} on a frontier: compute must rise and error "
                    "must fall from point to point; build it with Frontier().merge(points)."
                )

    def merge(self, points: Iterable[FrontierPoint]) -> "Frontier":
        """Returns the frontier of these points and the given ones together.

        Of points equal in compute and error the earlier stays: the lower number, then rung.
        """
        union = sorted([*self.points, *points], key=_precedence)
        if not union:
            return self
        kept = non_dominated([p.train_flops for p in union], [p.val_error for p in union])
        return Frontier(tuple(union[i] for i in kept))

    def expected(self) -> "Frontier":
        """Returns the frontier with expected errors that do not rise with compute.

        Those of points that are the best for their compute cannot. Where what is known of each
        alone says so, the points share their mean (`non_increasing`). The points stay: to leave
        out those that are expected to be no better than a cheaper one gave worse models.
        """
        if any(point.expected_error is None for point in self.points):
            return self
        errors = non_increasing([point.error for point in self.points])
        points = zip(self.points, errors, strict=True)
        return Frontier(tuple(replace(point, expected_error=error) for point, error in points))

    @property
    def confirmed(self) -> int:
        """The number of points whose recipe was measured again with another seed."""
        return sum(point.confirming_error is not None for point in self.points)

    def best_under(self, max_flops: float) -> FrontierPoint | None:
        """Returns the most accurate point within `max_flops` of training compute, if any."""
        within = bisect_right(self.points, _a_number("max_flops", max_flops), key=_compute)
        return self.points[within - 1] if within else None

    def cheapest_under(self, max_error: float) -> FrontierPoint | None:
        """Returns the cheapest point whose `error` is at most `max_error`, if any."""
        limit = _a_number("max_error", max_error)
        return next((p for p in self.points if p.error <= limit), None)

    def hypervolume(self, *, reference_flops: float, reference_error: float = 1.0) -> float:
        """Returns the area that the frontier dominates, in decades of compute × error.

        With `best(f)` the lowest `error` at compute `f` or less, and `f_0` the cheapest point's
        compute, it is

            ∫ from log10 f_0 to log10 reference_flops of
                max(0, reference_error − best(f)) d log10 f,

        a step function's integral, exact. Compute below `f_0` dominates nothing and adds
        nothing; neither do points beyond the reference point. Values compare only under the same
        reference point: keep it fixed over a task. (Zitzler & Thiele 1998, with compute in logs.)
        """
        end = math.log10(_checked_compute(reference_flops, name="reference_flops"))
        ceiling = _checked_error(reference_error, name="reference_error")
        edges = [min(p.log10_flops, end) for p in self.points] + [end]
        return sum(
            (right - left) * max(0.0, ceiling - point.error)
            for (left, right), point in zip(pairwise(edges), self.points, strict=True)
        )


def non_dominated(train_flops: ArrayLike, val_error: ArrayLike) -> NDArray[np.intp]:
    """Returns the indices of the points that no other beats, ascending in compute.

    A point is beaten by another that is no worse on both axes and better on one; of equal points
    the first is kept. Both arguments have shape (n,); the result has shape (m,), m <= n.
    O(n log n). Values that are missing, not finite, or out of range raise `ValueError`.
    """
    compute, error = np.asarray(train_flops), np.asarray(val_error)
    if compute.ndim != 1 or compute.shape != error.shape:
        raise ValueError(
            f"train_flops has shape {compute.shape} and val_error {error.shape}; "
            "both must be one-dimensional and equally long."
        )
    compute = np.array([_checked_compute(value) for value in compute.tolist()], dtype=np.float64)
    error = np.array([_checked_error(value) for value in error.tolist()], dtype=np.float64)

    order = np.lexsort((error, compute))  # stable, so equal points keep their order
    best_before = np.concatenate([[np.inf], np.minimum.accumulate(error[order])[:-1]])
    return order[error[order] < best_before[: order.size]]


def non_increasing(values: Iterable[float]) -> list[float]:
    """Returns the non-increasing values that are nearest to these in squares.

    (Isotonic regression; neighbours that rise are pooled, Ayer et al. 1955.)
    """
    pools: list[tuple[float, int]] = []
    for value in values:
        pools.append((value, 1))
        while len(pools) > 1 and pools[-1][0] > pools[-2][0]:
            (right, after), (left, before) = pools.pop(), pools.pop()
            whole = before + after
            pools.append(((left * before + right * after) / whole, whole))
    return [value for value, count in pools for _ in range(count)]


def _checked_compute(value: object, *, name: str = "train_flops") -> float:
    number = _a_number(name, value)
    if not 0 < number < math.inf:
        raise ValueError(f"{name}={value!r} must be positive and finite; compute is read in logs.")
    return number


def _checked_error(value: object, *, name: str = "val_error") -> float:
    number = _a_number(name, value)
    if not 0 <= number <= 1:
        raise ValueError(f"{name}={value!r} must lie in [0, 1]; it is a share of the images.")
    return number


def _a_number(name: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float | np.number):
        raise ValueError(f"{name}={value!r} must be a number; leave out what is unknown.")
    number = float(value)
    if math.isnan(number):
        raise ValueError(f"{name} is not a number (NaN); leave out points that were not measured.")
    return number


def _compute(point: FrontierPoint) -> float:
    return point.train_flops


def _precedence(point: FrontierPoint) -> tuple[float, float, int, int, str, bool]:
    """Sorts equal points so that the first is the one to keep.

    The last entry prefers, of the same measurement read twice, the copy whose test error is known.
    """
    return (
        point.train_flops,
        point.val_error,
        point.number,
        point.rung,
        point.trial_id,
        point.test_error is None,
    )
