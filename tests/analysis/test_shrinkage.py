"""Shrinkage against errors whose truth is known, and against those of real recipes."""

from statistics import fmean

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from analysis.shrinkage import Shrinkage

IMAGES = 300
HALVES = {
    "a": (
        *(268, 279, 281, 273, 275, 277, 287, 260, 288, 262, 206, 279, 271, 271, 274, 280, 281),
        *(250, 274, 276, 285, 285, 279, 255, 270, 278, 250, 289, 263, 275, 277, 194, 275, 285),
        *(257, 230, 278, 281, 267, 281, 277, 274, 275, 270, 269, 267, 284, 256, 250, 277, 265),
        *(265, 274, 274, 281, 226, 273, 236, 262, 280, 262, 268, 267, 236, 282, 255, 227, 268),
        *(284, 277, 271),
    ),
    "b": (
        *(273, 266, 275, 280, 269, 273, 289, 267, 283, 280, 233, 270, 272, 266, 268, 270, 267),
        *(259, 273, 277, 289, 284, 274, 248, 265, 269, 238, 288, 273, 267, 267, 196, 270, 275),
        *(242, 245, 262, 281, 272, 276, 281, 275, 272, 263, 267, 261, 287, 249, 244, 261, 273),
        *(273, 259, 272, 267, 236, 273, 232, 267, 265, 269, 270, 261, 257, 277, 261, 232, 258),
        *(284, 277, 269),
    ),
}
"""Images of two halves of 300 that 71 recipes of the joint space classified wrongly, each after 2e9
training FLOPs towards that rung: a ResNet on CIFAR-10, as `make record` runs it."""

SHARES = st.integers(0, IMAGES).map(lambda wrong: wrong / IMAGES)


def test_the_lowest_of_many_equal_recipes_is_expected_to_be_as_the_others_are() -> None:
    rng = np.random.default_rng(0)
    errors = (rng.binomial(IMAGES, 0.2, size=200) / IMAGES).tolist()
    shrunk = Shrinkage(errors, images=IMAGES)
    assert min(errors) < 0.15
    # the images that all recipes share are taken to move them together, so half of it is left
    assert shrunk.expected(min(errors)) > min(errors) + 0.01
    assert shrunk.expected(0.2) == pytest.approx(0.2, abs=0.003)


def test_a_leader_that_is_far_ahead_keeps_its_lead() -> None:
    rng = np.random.default_rng(0)
    errors = [0.1, *(rng.binomial(IMAGES, 0.5, size=200) / IMAGES).tolist()]
    assert Shrinkage(errors, images=IMAGES).expected(0.1) == pytest.approx(0.1, abs=0.005)


def test_more_images_leave_less_to_luck() -> None:
    errors = [0.20, 0.21, 0.22, 0.23, 0.24]
    few, many = (Shrinkage(errors, images=images).expected(0.20) for images in (300, 10_000))
    assert 0.20 < many < 0.205 < few


def test_what_the_best_of_real_recipes_makes_on_other_images_is_expected() -> None:
    """Of 20 of the recipes at a time the best on one half is checked on the other half."""
    halves = {name: np.array(wrong) / IMAGES for name, wrong in HALVES.items()}
    rng = np.random.default_rng(0)
    measured, expected = [], []
    for _ in range(50):
        drawn = rng.choice(len(halves["a"]), size=20, replace=False)
        for seen, other in (("a", "b"), ("b", "a")):
            errors = halves[seen][drawn]
            best = int(errors.argmin())
            truth = float(halves[other][drawn][best])
            measured.append(truth - float(errors[best]))
            shrunk = Shrinkage(errors.tolist(), images=IMAGES)
            expected.append(truth - shrunk.expected(float(errors[best])))
    assert fmean(measured) > 0.008
    assert 0 < fmean(expected) < 0.75 * fmean(measured)


@given(errors=st.lists(SHARES, min_size=1, max_size=30))
def test_the_order_of_errors_is_kept_and_nothing_leaves_their_range(errors: list[float]) -> None:
    shrunk = Shrinkage(errors, images=IMAGES)
    expected = [shrunk.expected(error) for error in sorted(errors)]
    assert expected == sorted(expected)
    slack = 0.012  # a share of no image, or of all, is taken for a little more or less
    assert min(errors) - slack <= expected[0]
    assert expected[-1] <= max(errors) + slack


@given(errors=st.lists(SHARES, min_size=2, max_size=30), seed=st.integers(0, 100))
def test_the_order_in_which_they_were_measured_does_not_matter(
    errors: list[float], seed: int
) -> None:
    shuffled = np.random.default_rng(seed).permutation(errors).tolist()
    one, other = (Shrinkage(e, images=IMAGES).expected(errors[0]) for e in (errors, shuffled))
    assert one == other


def test_another_run_of_the_recipe_counts_for_less_than_its_own() -> None:
    rng = np.random.default_rng(0)
    errors = (rng.uniform(0.1, 0.9, size=300)).tolist()
    shrunk = Shrinkage(errors, images=IMAGES)
    alone = shrunk.expected(0.2)
    worse = shrunk.expected(0.2, others=[0.28])
    assert worse == pytest.approx(alone + (shrunk.expected(0.28) - alone) / 11)
    assert shrunk.expected(0.2, others=[0.2]) == pytest.approx(alone)
    several = shrunk.expected(0.2, others=[0.28, 0.28, 0.28])
    assert several == pytest.approx(worse), "they count by their mean"


def test_errors_that_are_no_numbers_say_nothing() -> None:
    with_it = Shrinkage([0.2, 0.3, float("nan")], images=IMAGES)
    assert with_it.expected(0.2) == Shrinkage([0.2, 0.3], images=IMAGES).expected(0.2)
    assert with_it.expected(0.2, others=[float("nan")]) == with_it.expected(0.2)


def test_errors_of_no_images_are_refused() -> None:
    with pytest.raises(ValueError, match="images=0 must be at least 1"):
        Shrinkage([0.5], images=0)
