"""The joint space: methods compete, each with its own parameters."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
from optuna.distributions import BaseDistribution
from optuna.samplers import RandomSampler

from search_spaces.draws import check_space, draw
from search_spaces.joint import joint
from search_spaces.problem import Problem
from search_spaces.ranges import InvalidRangeError
from search_spaces.space import built_in_spaces, load_space, missing_condition

BARE = Problem(rungs=(1e9, 2e9), native_resolution=32, train_images=5_000, classes=10)
EVERYTHING = replace(BARE, source_task=True, sparse_backbone=True, class_imbalance=3.0)
METHODS = tuple(name for name in built_in_spaces() if name != "joint")


def methods_of(problem: Problem, ranges: Mapping[str, Any] | None = None) -> set[str]:
    return set(check_space(joint, ranges or {}, problem).methods)


def test_every_space_of_a_method_competes() -> None:
    assert methods_of(EVERYTHING) == set(METHODS) >= {"filter_pruning", "full", "linear_probe"}


def test_the_ranges_list_which_methods_compete() -> None:
    assert methods_of(BARE, {"method": ["full", "linear_probe"]}) == {"full", "linear_probe"}
    assert methods_of(BARE, {"method": "full"}) == {"full"}


def test_a_range_of_one_method_narrows_it_among_the_others() -> None:
    ranges = {"method": ["full", "filter_pruning"], "pruning_ratio": [0.5, 0.9]}
    recipes = check_space(joint, ranges, BARE).recipes
    ratios = [r.settings["pruning_ratio"] for r in recipes if r.method == "filter_pruning"]
    assert 0.5 <= min(float(ratio) for ratio in ratios) < 0.6


def test_a_method_whose_conditions_are_not_met_does_not_compete() -> None:
    lacking = {name for name in METHODS if missing_condition(name, BARE)}
    assert methods_of(BARE) == set(METHODS) - lacking


@pytest.mark.parametrize("name", METHODS)
def test_a_method_listed_in_vain_is_refused_with_what_it_needs(name: str) -> None:
    needs = missing_condition(name, BARE)
    assert missing_condition(name, EVERYTHING) is None
    if needs is None:
        return
    with pytest.raises(InvalidRangeError, match=f"is not offered; .*{name} needs {needs}"):
        draw(joint, {"method": [name, "full"]}, BARE, RandomSampler(seed=0))


def test_an_unknown_method_is_refused_with_those_there_are() -> None:
    with pytest.raises(InvalidRangeError, match="names 'ful', which is not offered; choose among"):
        draw(joint, {"method": ["ful"]}, BARE, RandomSampler(seed=0))


def test_a_name_means_the_same_range_in_every_space() -> None:
    """One study holds them all: Optuna refuses one name with two lists of choices."""
    seen: dict[str, tuple[str, BaseDistribution]] = {}
    for method in METHODS:
        for seed in range(40):
            drawn = draw(load_space(method), {}, EVERYTHING, RandomSampler(seed=seed))
            assert drawn.recipe.method == method
            for name, distribution in drawn.distributions.items():
                first, known = seen.setdefault(name, (method, distribution))
                assert distribution == known, f"{name} differs between {first} and {method}"
