"""The frontier against brute force, and its promises about order, ties and bad numbers."""

import json
import math
from dataclasses import fields, replace
from functools import reduce
from itertools import combinations_with_replacement, pairwise
from random import Random
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from analysis.frontier import Frontier, FrontierPoint, non_dominated, non_increasing
from trainables.measurement import Measurement

# Few distinct values, so that ties on one axis and on both are common.
COMPUTE = st.sampled_from([1e9, 2e9, 5e9, 1e10, 1e11, 3e12]) | st.floats(1e6, 1e16)
ERROR = st.sampled_from([0.0, 0.1, 0.25, 0.5, 1.0]) | st.floats(0, 1)


def point(
    train_flops: float,
    val_error: float,
    *,
    number: int = 0,
    rung: int = 0,
    test_error: float | None = None,
    val_loss: float = 1.0,
) -> FrontierPoint:
    return FrontierPoint(
        trial_id=f"t{number}",
        number=number,
        measurement=Measurement(
            rung=rung,
            train_flops=train_flops,
            executed_flops=1e9,
            eval_flops=1e9,
            inference_flops=1e8,
            params=1000,
            updated_params=10,
            val_error=val_error,
            val_loss=val_loss,
            test_error=test_error,
            train_seconds=1.0,
            images_seen=100,
        ),
        recipe={"method": "filter_pruning", "learning_rate": 0.1},
    )


POINTS = st.lists(
    st.builds(point, COMPUTE, ERROR, number=st.integers(0, 5), rung=st.integers(0, 3)),
    max_size=25,
)


def beats(a: FrontierPoint, b: FrontierPoint) -> bool:
    no_worse = a.train_flops <= b.train_flops and a.val_error <= b.val_error
    return no_worse and (a.train_flops < b.train_flops or a.val_error < b.val_error)


def by_brute_force(points: list[FrontierPoint]) -> list[FrontierPoint]:
    """Every pair is compared; of equal points the one with the lowest number and rung stays."""
    best = [p for p in points if not any(beats(q, p) for q in points)]
    firsts: dict[tuple[float, float], FrontierPoint] = {}
    for p in sorted(best, key=lambda p: (p.number, p.rung)):
        firsts.setdefault((p.train_flops, p.val_error), p)
    return [firsts[key] for key in sorted(firsts)]


def area_on_a_grid(points: list[FrontierPoint], end: float, ceiling: float) -> float:
    """The union of the rectangles that the points dominate, cell by cell of their own grid."""
    xs = sorted({math.log10(p.train_flops) for p in points if p.train_flops < end})
    xs.append(math.log10(end))
    ys = [*sorted({p.val_error for p in points if p.val_error < ceiling}), ceiling]
    area = 0.0
    for left, right in pairwise(xs):
        for low, high in pairwise(ys):
            dominated = any(
                math.log10(p.train_flops) <= left and p.val_error <= low for p in points
            )
            area += (right - left) * (high - low) * dominated
    return area


@given(POINTS)
def test_merge_agrees_with_comparing_every_pair(points: list[FrontierPoint]) -> None:
    assert list(Frontier().merge(points).points) == by_brute_force(points)


@given(st.lists(st.tuples(COMPUTE, ERROR), max_size=25))
def test_non_dominated_keeps_the_first_of_equal_points(pairs: list[tuple[float, float]]) -> None:
    kept = non_dominated([f for f, _ in pairs], [e for _, e in pairs])
    best = {
        i
        for i, (f, e) in enumerate(pairs)
        if not any(g <= f and d <= e and (g, d) != (f, e) for g, d in pairs)
        and (f, e) not in pairs[:i]
    }
    assert set(kept.tolist()) == best
    assert len(kept) == len(best)
    assert [pairs[i][0] for i in kept] == sorted(pairs[i][0] for i in kept)


@given(POINTS, st.randoms(use_true_random=False))
def test_the_order_of_the_points_does_not_matter(
    points: list[FrontierPoint], random: Random
) -> None:
    shuffled = list(points)
    random.shuffle(shuffled)
    assert Frontier().merge(shuffled) == Frontier().merge(points)


@given(POINTS, POINTS, POINTS)
def test_merging_is_associative(
    a: list[FrontierPoint], b: list[FrontierPoint], c: list[FrontierPoint]
) -> None:
    left_first = reduce(Frontier.merge, (a, b, c), Frontier())
    right_first = Frontier().merge(a).merge(Frontier().merge(b).merge(c).points)
    assert left_first == right_first == Frontier().merge([*a, *b, *c])


@given(POINTS, st.floats(1e6, 1e16), st.floats(0, 1))
def test_hypervolume_is_the_dominated_area(
    points: list[FrontierPoint], end: float, ceiling: float
) -> None:
    volume = Frontier().merge(points).hypervolume(reference_flops=end, reference_error=ceiling)
    assert volume == pytest.approx(area_on_a_grid(points, end, ceiling), abs=1e-9)


@given(POINTS, POINTS)
def test_hypervolume_never_falls_when_points_are_added(
    points: list[FrontierPoint], more: list[FrontierPoint]
) -> None:
    before = Frontier().merge(points)
    volume = before.hypervolume(reference_flops=1e17)
    assert before.merge(more).hypervolume(reference_flops=1e17) >= volume - 1e-9


def test_hypervolume_of_a_known_staircase() -> None:
    stairs = Frontier().merge([point(1e10, 0.5), point(1e12, 0.2), point(1e15, 0.1)])
    # 2 decades at 0.5 and 1 decade at 0.8; the last point lies beyond the reference.
    assert stairs.hypervolume(reference_flops=1e13) == pytest.approx(2 * 0.5 + 1 * 0.8)
    assert stairs.hypervolume(reference_flops=1e13, reference_error=0.5) == pytest.approx(0.3)
    assert stairs.hypervolume(reference_flops=1e9) == 0
    assert Frontier().hypervolume(reference_flops=1e13) == 0


@given(POINTS, COMPUTE, ERROR)
def test_queries_answer_what_a_scan_of_all_points_answers(
    points: list[FrontierPoint], budget: float, target: float
) -> None:
    frontier = Frontier().merge(points)
    affordable = [p.val_error for p in points if p.train_flops <= budget]
    good = [p.train_flops for p in points if p.val_error <= target]
    best, cheapest = frontier.best_under(budget), frontier.cheapest_under(target)
    assert (best.val_error if best else None) == min(affordable, default=None)
    assert (cheapest.train_flops if cheapest else None) == min(good, default=None)


def test_of_equal_points_the_earlier_trial_then_rung_stays() -> None:
    late, early, early_later_rung = (
        point(1e10, 0.3, number=4),
        point(1e10, 0.3, number=1, rung=1),
        point(1e10, 0.3, number=1, rung=2),
    )
    assert Frontier().merge([late, early_later_rung, early]).points == (early,)


def test_a_test_error_that_becomes_known_replaces_the_unknown_one() -> None:
    unknown, known = point(1e10, 0.3), point(1e10, 0.3, test_error=0.31)
    assert Frontier().merge([unknown]).merge([known]).points == (known,)
    assert Frontier().merge([known]).merge([unknown]).points == (known,)


def test_test_error_never_selects() -> None:
    chosen = point(1e10, 0.3, number=0, test_error=0.9)
    lucky = point(1e10, 0.4, number=1, test_error=0.0)
    assert Frontier().merge([chosen, lucky]).points == (chosen,)


@pytest.mark.parametrize("value", [math.nan, math.inf, -1.0, 0.0, None, "1e9", True])
def test_bad_compute_is_refused_by_name(value: Any) -> None:
    with pytest.raises(ValueError, match="train_flops"):
        point(value, 0.5)
    with pytest.raises(ValueError, match="train_flops"):
        non_dominated(np.array([1e9, value], dtype=object), [0.5, 0.5])
    with pytest.raises(ValueError, match="reference_flops"):
        Frontier().hypervolume(reference_flops=value)


@pytest.mark.parametrize("value", [math.nan, math.inf, -0.1, 1.1, None])
def test_bad_error_is_refused_by_name(value: Any) -> None:
    with pytest.raises(ValueError, match="val_error"):
        point(1e9, value)
    with pytest.raises(ValueError, match="val_error"):
        non_dominated([1e9, 1e9], np.array([0.5, value], dtype=object))
    with pytest.raises(ValueError, match="reference_error"):
        Frontier().hypervolume(reference_flops=1e9, reference_error=value)


def test_a_point_is_written_as_json_with_all_that_was_measured() -> None:
    written = json.loads(json.dumps(point(1e10, 0.3, rung=2, val_loss=math.inf).to_dict()))
    assert {f.name for f in fields(Measurement)} < written.keys()
    assert (written["trial_id"], written["rung"], written["val_error"]) == ("t0", 2, 0.3)
    assert written["recipe"] == {"method": "filter_pruning", "learning_rate": 0.1}
    assert written["val_loss"] is None, "JSON has no infinity"


def test_what_is_expected_to_be_no_better_than_a_cheaper_one_is_expected_to_be_like_it() -> None:
    cheap, lucky, dear = (
        replace(point(flops, error, number=number), expected_error=expected)
        for number, (flops, error, expected) in enumerate(
            [(1e9, 0.3, 0.31), (1e10, 0.28, 0.32), (1e11, 0.1, 0.11)]
        )
    )
    measured = Frontier().merge([cheap, lucky, dear])
    assert measured.points == (cheap, lucky, dear)
    frontier = measured.expected()
    assert [p.expected_error for p in frontier.points] == pytest.approx([0.315, 0.315, 0.11])
    assert frontier.best_under(5e10) == frontier.points[1]
    assert frontier.cheapest_under(0.3) == dear, "what is measured at 0.3 is not expected to be"
    assert frontier.cheapest_under(0.32) == frontier.points[0]
    volume = frontier.hypervolume(reference_flops=1e12)
    assert volume == pytest.approx(2 * (1 - 0.315) + 1 * 0.89)


@given(points=POINTS)
def test_where_nothing_is_expected_the_measured_errors_select(
    points: list[FrontierPoint],
) -> None:
    frontier = Frontier().merge(points)
    assert frontier.expected() == frontier


@given(points=POINTS, seed=st.integers(0, 100))
def test_expected_errors_do_not_rise_along_a_frontier_and_keep_their_mean(
    points: list[FrontierPoint], seed: int
) -> None:
    rng = Random(seed)
    shrunk = [replace(p, expected_error=rng.random()) for p in points]
    measured = Frontier().merge(shrunk)
    frontier = measured.expected()
    assert [p.measurement for p in frontier.points] == [p.measurement for p in measured.points]
    assert all(left.error >= right.error for left, right in pairwise(frontier.points))
    assert sum(p.error for p in frontier.points) == pytest.approx(
        sum(p.error for p in measured.points)
    )


@given(values=st.lists(st.sampled_from([0.1, 0.2, 0.3, 0.4]), max_size=5))
def test_non_increasing_values_are_the_nearest(values: list[float]) -> None:
    found = non_increasing(values)
    assert all(left >= right for left, right in pairwise(found))
    steps = [n / 40 for n in range(4, 17)]
    others = combinations_with_replacement(sorted(steps, reverse=True), len(values))
    nearest = min(sum((a - b) ** 2 for a, b in zip(o, values, strict=True)) for o in others)
    squares = sum((a - b) ** 2 for a, b in zip(found, values, strict=True))
    assert squares <= nearest + 1e-12


def test_confirmed_points_are_counted() -> None:
    points = [point(1e9, 0.5), replace(point(1e10, 0.4), confirming_error=0.4), point(1e11, 0.3)]
    assert Frontier().merge(points).confirmed == 1


def test_an_expected_error_that_is_no_share_is_refused() -> None:
    with pytest.raises(ValueError, match="expected_error=1.5 must lie"):
        replace(point(1e9, 0.5), expected_error=1.5)


def test_nan_queries_and_uneven_arrays_are_refused() -> None:
    with pytest.raises(ValueError, match="max_flops"):
        Frontier().best_under(math.nan)
    with pytest.raises(ValueError, match="max_error"):
        Frontier().cheapest_under(math.nan)
    with pytest.raises(ValueError, match="equally long"):
        non_dominated([1e9, 2e9], [0.5])


def test_a_frontier_cannot_be_built_out_of_order() -> None:
    cheap_and_good, dear_and_bad = point(1e9, 0.2), point(1e10, 0.4, number=1)
    with pytest.raises(ValueError, match=r"merge\(points\)"):
        Frontier((cheap_and_good, dear_and_bad))
