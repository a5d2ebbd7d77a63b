"""Chance: numbers in, decisions out."""

import random

import pytest

from orchestrator.search.chance import Chance

TEN = Chance(images=1000, most_common=100, min_peers=4)
"""Ten classes alike: guessing errs in 0.9 of 1000 images, ± 0.0095."""
SKEWED = Chance.of({"car": 150, "boat": 30, "plane": 20}, min_peers=3)


def test_chance_is_the_most_common_class() -> None:
    assert (SKEWED.images, SKEWED.most_common, SKEWED.error) == (200, 150, 0.25)


def test_what_counts_as_learnt() -> None:
    assert TEN.learnt_below == pytest.approx(0.9 - 2.326 * 0.0095, abs=1e-3)
    assert SKEWED.learnt_below == pytest.approx(0.25 - 2.326 * 0.0306, abs=1e-3)


def test_guessing_is_taken_for_learning_once_in_a_hundred_tries() -> None:
    draws = random.Random(0)
    errors = [sum(draws.random() < 0.9 for _ in range(1000)) / 1000 for _ in range(2000)]
    assert TEN.learners(sorted(errors)) / 2000 == pytest.approx(0.01, abs=0.005)


@pytest.mark.parametrize(
    ("error", "others", "diverged"),
    [
        (0.9, [0.5, 0.4, 0.6], True),
        (0.89, [0.5, 0.4, 0.6], True),  # better by less than luck may give
        (0.93, [0.5, 0.4, 0.6], True),
        (0.86, [0.5, 0.4, 0.3], False),  # bad, and learns
        (0.9, [0.5, 0.4], False),  # too few to judge by
        (0.9, [0.9, 0.88, 0.9, 0.5], False),  # where nobody learns yet
        (0.9, [0.5, 0.5, 0.9], False),  # half is not most
        (0.9, [0.5, 0.5, 0.5, 0.9], True),
    ],
)
def test_who_has_diverged(error: float, others: list[float], diverged: bool) -> None:
    assert TEN.has_diverged(error, sorted([*others, error])) is diverged


def test_nobody_diverges_where_all_images_are_of_one_class() -> None:
    single = Chance(images=20, most_common=20, min_peers=1)
    assert not single.has_diverged(0.0, [0.0, 0.0, 0.0])
    assert not single.has_diverged(0.5, [0.0, 0.0, 0.5])
