"""The contribution of a trial's curve: the one of its points that the study is told."""

from collections.abc import Iterable
from math import isfinite, log10

from trainables.measurement import Measurement

Point = tuple[float, float]
"""Validation error, 0-1, and log10 of the training FLOPs."""

WORST_ERROR = 1.0
"""The validation error up to which a point's area is counted."""
BEYOND = 1.0
"""Decades for which the area goes on beyond the curve's end, where a point would add none."""


def contribution(curve: Iterable[Measurement]) -> Point | None:
    """Returns the point of the curve that dominates the largest area by itself.

    The area lies over log10 training FLOPs × error, from the point's compute to a decade beyond
    the curve's end, and from its error to the worst; of equals it is the point of most compute.
    None where the curve has no point with a finite error. Other trials have no say, so that it
    does not matter which of them has finished first.
    """
    points = [
        (m.val_error, log10(m.train_flops))
        for m in curve
        if isfinite(m.val_error) and m.train_flops > 0
    ]
    end = max((flops for _, flops in points), default=0.0) + BEYOND
    return max(points, key=lambda point: _area_and_compute(*point, end=end), default=None)


def _area_and_compute(error: float, flops: float, *, end: float) -> tuple[float, float]:
    return (WORST_ERROR - error) * (end - flops), flops
