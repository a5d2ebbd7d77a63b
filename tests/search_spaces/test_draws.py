"""The dry run finds a space's parameters and its faults before any compute is spent."""

from typing import Any

import pytest
from optuna.samplers import RandomSampler

from search_spaces.draws import check_space, draw
from search_spaces.joint import joint
from search_spaces.methods.filter_pruning import filter_pruning
from search_spaces.problem import Problem
from search_spaces.ranges import InvalidRangeError
from search_spaces.recipe import InvalidRecipeError, Recipe
from search_spaces.space import InvalidSpaceError, Trial

PROBLEM = Problem(
    rungs=(1e9, 2e9, 4e9, 8e9),
    native_resolution=32,
    train_images=50_000,
    classes=10,
    class_imbalance=3.0,
)
EVERY_PARAMETER = (
    "pruning_ratio",
    "batch_norm_repair",
    "criterion",
    "width_rule",
    "scope",
    "ridge_repair",
    "optimizer",
    "schedule",
    "learning_rate",
    "weight_decay",
    "adamw_rate",
    "adamw_decay",
    "clip_norm",
    "batch_size",
    "label_smoothing",
    "class_weighting",
    "layer_decay",
    "trainable_depth",
    "resolution",
    "augmentation",
    "mixing",
    "target_rung",
)


def probe(trial: Trial, problem: Problem) -> Recipe:
    """A space of a user's own, with a parameter that only some draws ask for."""
    if trial.suggest_categorical("optimizer", ("sgd", "adam")) == "adam":
        trial.suggest_float("beta", 0.8, 0.99)
    return Recipe(
        method="probe",
        learning_rate=trial.suggest_float("learning_rate", 1e-4, 1e-1, log=True),
        weight_decay=0.0,
        batch_size=32,
        label_smoothing=0.0,
        layer_decay=1.0,
        trainable_depth=0.0,
        resolution=problem.native_resolution,
        augmentation=0.0,
        target_flops=problem.rungs[-1],
    )


def test_a_draw_remembers_how_it_was_made() -> None:
    ranges = {"batch_size": 32, "optimizer": "sgd", "trainable_depth": 1.0}
    drawn = draw(filter_pruning, ranges, PROBLEM, RandomSampler(seed=0))
    assert drawn.names == tuple(n for n in EVERY_PARAMETER if not n.startswith("adamw_"))
    assert set(drawn.params) == set(drawn.distributions) == set(drawn.names) - set(ranges)
    assert drawn.recipe.batch_size == 32
    assert drawn.recipe.learning_rate == drawn.params["learning_rate"]


def test_the_same_seed_draws_the_same_recipe() -> None:
    first, again, other = (
        draw(filter_pruning, {}, PROBLEM, RandomSampler(seed=seed)).recipe for seed in (1, 1, 2)
    )
    assert first.recipe_id == again.recipe_id != other.recipe_id


def test_a_dry_run_names_every_parameter() -> None:
    assert set(check_space(filter_pruning, {}, PROBLEM).names) == set(EVERY_PARAMETER)
    assert set(check_space(probe, {}, PROBLEM).names) == {"optimizer", "beta", "learning_rate"}


def test_a_dry_run_says_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    check_space(probe, {}, PROBLEM)
    assert capfd.readouterr() == ("", "")


def test_ranges_of_conditional_parameters_are_known_and_checked() -> None:
    check_space(probe, {"beta": [0.85, 0.9]}, PROBLEM)
    with pytest.raises(InvalidRangeError, match=r"ranges\.beta=2 must lie within"):
        check_space(probe, {"beta": 2}, PROBLEM)


@pytest.mark.parametrize(
    ("ranges", "complaint"),
    [
        ({"prunning_ratio": 0.5}, "prunning_ratio names no .*did you mean pruning_ratio?"),
        (
            {"zzz": 1},
            "zzz names no parameter left in the search space, which has .*; leave it out.",
        ),
        ({"pruning_ratio": [0.5, 1.5]}, "must lie within"),
        ({"criterion": ["l1", "l3"]}, "choose among l1, l2, batch_norm_scale"),
        ({"target_rung": 4}, "must lie within"),
        ({"batch_size": 48}, "ranges.batch_size=48 cannot be had.*makes 64 of it; write 64"),
        ({3: 1}, "ranges.3 names no parameter"),
        ({"optimizer": "lion"}, "ranges.optimizer='lion' .*sgd"),
        (
            {"optimizer": "adamw", "learning_rate": 0.01},
            "ranges.learning_rate names no .*the recipe's learning_rate comes from adamw_rate here",
        ),
    ],
)
def test_a_bad_range_is_found_before_the_sweep(ranges: Any, complaint: str) -> None:
    with pytest.raises(InvalidRangeError, match=complaint):
        check_space(filter_pruning, ranges, PROBLEM)


def test_a_range_of_a_field_that_has_parameters_of_other_names_is_told_those() -> None:
    ranges = {"method": ["ac_dc", "rigl"], "sparsity": 0.5}
    complaint = "the recipe's sparsity comes from (ac_dc|rigl)_sparsity or (ac_dc|rigl)_sparsity"
    with pytest.raises(InvalidRangeError, match=complaint):
        check_space(joint, ranges, PROBLEM)


def test_good_ranges_hold_in_every_draw() -> None:
    ranges = {
        "pruning_ratio": [0.2, 0.5],
        "criterion": ["l1"],
        "batch_size": 32,
        "optimizer": "sgd",
        "learning_rate": {"low": "1e-3", "high": 1e-2},
        "resolution": [20, 32],
        "target_rung": 2,
    }
    check_space(filter_pruning, ranges, PROBLEM)
    for seed in range(30):
        recipe = draw(filter_pruning, ranges, PROBLEM, RandomSampler(seed=seed)).recipe
        assert 0.2 <= float(recipe.settings["pruning_ratio"]) <= 0.5
        assert recipe.settings["criterion"] == "l1"
        assert recipe.batch_size == 32
        assert 1e-3 <= recipe.learning_rate <= 1e-2
        assert recipe.resolution in (24, 32)
        assert recipe.target_flops == 4e9


def test_a_space_that_raises_is_named_with_its_values() -> None:
    def fragile(trial: Trial, problem: Problem) -> Recipe:
        depth = trial.suggest_int("depth", 1, 3)
        raise KeyError(f"no depth {depth}")

    with pytest.raises(InvalidSpaceError, match=r"fragile raised KeyError: .*at depth=[123]; mend"):
        check_space(fragile, {}, PROBLEM)


def test_a_space_that_raises_at_once_is_named() -> None:
    def hopeless(trial: Trial, problem: Problem) -> Recipe:
        raise RuntimeError("out of tea")

    with pytest.raises(InvalidSpaceError, match="RuntimeError: out of tea, before it asked"):
        check_space(hopeless, {}, PROBLEM)


def test_a_space_that_returns_no_recipe_is_refused() -> None:
    def forgetful(trial: Trial, problem: Problem) -> Any:
        return {"learning_rate": 0.1}

    with pytest.raises(
        InvalidSpaceError, match=r"returned {'learning_rate': 0.1\}; it must return"
    ):
        check_space(forgetful, {}, PROBLEM)


def test_a_space_that_makes_an_invalid_recipe_keeps_its_complaint() -> None:
    def fast(trial: Trial, problem: Problem) -> Recipe:
        values = probe(trial, problem).to_dict()
        return Recipe.from_dict(values | {"learning_rate": -1.0})

    with pytest.raises(InvalidRecipeError, match=r"learning_rate=-1\.0 must be positive"):
        check_space(fast, {}, PROBLEM)
