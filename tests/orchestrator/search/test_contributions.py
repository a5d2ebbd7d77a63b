"""What a curve adds is what the frontier's area grows by."""

from math import inf, log10, nan

import pytest
from hypothesis import given
from hypothesis import strategies as st

from analysis.frontier import Frontier, FrontierPoint
from orchestrator.search.contributions import BEYOND, Contributions
from tests.orchestrator.fake_trials import measurement
from trainables.measurement import Measurement

POINTS = st.tuples(
    st.sampled_from([1e9, 2e9, 3e9, 5e9, 8e9]), st.sampled_from([0.0, 0.2, 0.5, 1.0])
)
CURVES = st.lists(POINTS, min_size=1, max_size=5)


def curve(*points: tuple[float, float]) -> list[Measurement]:
    return [measurement(0, error, train_flops=flops) for flops, error in points]


def area(points: list[tuple[float, float]], *, end: float) -> float:
    """The hypervolume of the frontier of the points, from the cheapest on."""
    every = [
        FrontierPoint(trial_id="t", number=0, measurement=m, recipe={}) for m in curve(*points)
    ]
    return Frontier().merge(every).hypervolume(reference_flops=10**end)


@given(others=st.lists(CURVES, max_size=6), points=CURVES)
def test_the_best_point_is_the_one_by_which_the_area_grows_most(
    others: list[list[tuple[float, float]]], points: list[tuple[float, float]]
) -> None:
    contributions = Contributions()
    for other in others:
        contributions.add(curve(*other))
    before = [point for other in others for point in other]
    end = log10(max(flops for flops, _ in [*before, *points])) + BEYOND
    gains = {p: area([*before, p], end=end) - area(before, end=end) for p in points}
    best = contributions.best(curve(*points))
    assert best is not None
    told = next(p for p in points if (p[1], log10(p[0])) == best)
    assert gains[told] == pytest.approx(max(gains.values()), abs=1e-9)
    if max(gains.values()) < 1e-9:
        lowest = {
            p: min([error for flops, error in before if flops <= p[0]], default=1.0) for p in points
        }
        assert told[1] - lowest[told] == min(p[1] - lowest[p] for p in points)


@given(others=st.lists(CURVES, max_size=6), points=CURVES)
def test_the_order_in_which_the_others_were_told_is_no_matter(
    others: list[list[tuple[float, float]]], points: list[tuple[float, float]]
) -> None:
    forth, back = Contributions(), Contributions()
    for other in others:
        forth.add(curve(*other))
    for other in [*reversed(others), *others]:
        back.add(curve(*other))
    assert forth.best(curve(*points)) == back.best(curve(*points))


def test_of_equals_it_is_the_one_of_most_compute() -> None:
    contributions = Contributions()
    contributions.add(curve((1e9, 0.25), (4e9, 0.125)))
    assert contributions.best(curve((1e9, 0.5), (2e9, 0.5), (4e9, 0.375))) == (0.375, log10(4e9))


def test_what_is_not_finite_is_no_point() -> None:
    contributions = Contributions()
    contributions.add(curve((1e9, nan), (1e9, inf), (0.0, 0.1)))
    assert contributions.best(curve((1e9, nan), (2e9, inf), (0.0, 0.1))) is None
    assert contributions.best(curve((1e9, nan), (2e9, 0.9))) == (0.9, log10(2e9))
    assert contributions.best([]) is None
