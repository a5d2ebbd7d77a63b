"""What a curve contributes is the point that would dominate most by itself."""

from math import inf, log10, nan

import pytest
from hypothesis import given
from hypothesis import strategies as st

from analysis.frontier import Frontier, FrontierPoint
from orchestrator.search.contribution import BEYOND, contribution
from tests.orchestrator.fake_trials import measurement
from trainables.measurement import Measurement

POINTS = st.tuples(
    st.sampled_from([1e9, 2e9, 3e9, 5e9, 8e9]), st.sampled_from([0.0, 0.2, 0.5, 1.0])
)


def curve(*points: tuple[float, float]) -> list[Measurement]:
    return [measurement(0, error, train_flops=flops) for flops, error in points]


def area(point: Measurement, *, end: float) -> float:
    """Returns the hypervolume of a frontier of one point."""
    alone = FrontierPoint(trial_id="t", number=0, measurement=point, recipe={})
    return Frontier((alone,)).hypervolume(reference_flops=10**end)


@given(points=st.lists(POINTS, min_size=1, max_size=6))
def test_it_is_the_point_of_the_largest_area(points: list[tuple[float, float]]) -> None:
    end = log10(max(flops for flops, _ in points)) + BEYOND
    areas = {(m.val_error, log10(m.train_flops)): area(m, end=end) for m in curve(*points)}
    told = contribution(curve(*points))
    assert told is not None
    assert areas[told] == pytest.approx(max(areas.values()), abs=1e-9)


def test_it_may_lie_before_the_end() -> None:
    assert contribution(curve((1e9, 0.3), (2e9, 0.29), (4e9, 0.28))) == (0.3, log10(1e9))
    assert contribution(curve((1e9, 0.8), (2e9, 0.3), (4e9, 0.5))) == (0.3, log10(2e9))


def test_of_equals_it_is_the_one_of_most_compute() -> None:
    assert contribution(curve((1e9, 1.0), (2e9, 1.0))) == (1.0, log10(2e9))


def test_what_is_not_finite_is_no_point() -> None:
    assert contribution(curve((1e9, nan), (2e9, inf), (0.0, 0.1))) is None
    assert contribution(curve((1e9, nan), (2e9, 0.9))) == (0.9, log10(2e9))
    assert contribution([]) is None
