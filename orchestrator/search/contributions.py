"""The contribution of a trial's curve to the frontier of the trials that were over before it."""

from bisect import bisect_left, bisect_right
from collections.abc import Iterable
from itertools import pairwise
from math import inf, isfinite, log10

from trainables.measurement import Measurement

Point = tuple[float, float]
"""Validation error, 0-1, and log10 of the training FLOPs."""

WORST_ERROR = 1.0
"""The validation error up to which a frontier's area is counted."""
BEYOND = 1.0
"""Decades for which the area goes on beyond the highest compute, where a point would add none."""


class Contributions:
    """The frontier of the curves that it was told, and what another curve would add to it.

    It depends on which curves it was told, and not on their order.
    """

    def __init__(self) -> None:
        self._flops: list[float] = []
        """log10 of the training FLOPs of the frontier's points, ascending."""
        self._errors: list[float] = []
        """Their validation errors, descending."""
        self._highest = -inf
        """log10 of the highest training FLOPs that were told."""

    def add(self, curve: Iterable[Measurement]) -> None:
        """Takes a curve into the frontier; doing it twice is once."""
        for error, flops in _points(curve):
            self._highest = max(self._highest, flops)
            self._insert(error, flops)

    def best(self, curve: Iterable[Measurement]) -> Point | None:
        """Returns the point of the curve that adds most to the frontier's area.

        The area lies over log10 training FLOPs × error, from a point's compute to a decade beyond
        the highest, and below the worst error. Where no point adds any, it is the one whose error
        is least above the frontier's at its compute; of equals the one of most compute. None where
        the curve has no point with a finite error.
        """
        points = _points(curve)
        end = max([self._highest, *(flops for _, flops in points)]) + BEYOND
        return max(points, key=lambda point: self._worth(*point, end=end), default=None)

    def _worth(self, error: float, flops: float, *, end: float) -> tuple[float, float, float]:
        """The measures that a point is chosen by: its gain, its nearness, its compute."""
        place = bisect_right(self._flops, flops)
        lowest = self._errors[place - 1] if place else WORST_ERROR
        nearness, gain = lowest - error, 0.0
        edges = (flops, *self._flops[place:], end)
        for (left, right), above in zip(
            pairwise(edges), (lowest, *self._errors[place:]), strict=True
        ):
            gain += (right - left) * max(0.0, above - error)
        return gain, nearness, flops

    def _insert(self, error: float, flops: float) -> None:
        """Puts a point in place of those that it beats, unless it is beaten itself."""
        first, after = bisect_left(self._flops, flops), bisect_right(self._flops, flops)
        if after and self._errors[after - 1] <= error:
            return
        while after < len(self._errors) and self._errors[after] >= error:
            after += 1
        self._flops[first:after] = [flops]
        self._errors[first:after] = [error]


def _points(curve: Iterable[Measurement]) -> list[Point]:
    """Returns the curve's points that may lie on a frontier."""
    return [
        (m.val_error, log10(m.train_flops))
        for m in curve
        if isfinite(m.val_error) and m.train_flops > 0
    ]
