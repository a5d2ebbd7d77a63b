"""The filter pruning space offers what it says, for tasks and backbones of every size."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.samplers import RandomSampler
from optuna.trial import FixedTrial

from search_spaces.draws import draw
from search_spaces.methods.filter_pruning import CRITERIA, filter_pruning
from search_spaces.problem import Problem
from search_spaces.recipe import Optimizer, Recipe, Schedule

RUNGS = (1e9, 2e9, 4e9)


def problem(*, native_resolution: int = 224, train_images: int = 50_000) -> Problem:
    return Problem(
        rungs=RUNGS, native_resolution=native_resolution, train_images=train_images, classes=10
    )


def recipes(of: Problem, number: int = 200) -> list[Recipe]:
    return [draw(filter_pruning, {}, of, RandomSampler(seed=seed)).recipe for seed in range(number)]


def ratio_of(recipe: Recipe) -> float:
    ratio = recipe.settings["pruning_ratio"]
    assert isinstance(ratio, int | float)
    return ratio


def test_a_given_trial_gives_the_recipe_of_its_values() -> None:
    values = {
        "pruning_ratio": 0.5,
        "criterion": "l2",
        "width_rule": "all",
        "scope": "global",
        "batch_norm_repair": True,
        "ridge_repair": False,
        "optimizer": "adamw",
        "schedule": "linear",
        "adamw_rate": 0.01,
        "adamw_decay": 1e-3,
        "clip_norm": 1.0,
        "batch_size": 47,
        "label_smoothing": 0.1,
        "layer_decay": 0.75,
        "trainable_depth": 0.5,
        "resolution": 168,
        "augmentation": 0.4,
        "mixing": "cutmix",
        "target_rung": 1,
    }
    assert filter_pruning(FixedTrial(values), problem()) == Recipe(
        method="filter_pruning",
        settings={
            "pruning_ratio": 0.5,
            "criterion": "l2",
            "width_rule": "all",
            "scope": "global",
            "batch_norm_repair": True,
            "ridge_repair": False,
        },
        learning_rate=0.01,
        weight_decay=1e-3,
        batch_size=64,
        label_smoothing=0.1,
        layer_decay=0.75,
        trainable_depth=0.5,
        resolution=168,
        augmentation=0.4,
        target_flops=2e9,
        optimizer=Optimizer.ADAMW,
        schedule=Schedule.LINEAR,
        clip_norm=1.0,
        cutmix=1.0,
    )


def test_every_choice_and_both_ends_are_reached() -> None:
    drawn = recipes(problem())
    pruned = [r.settings for r in drawn if ratio_of(r) > 0]
    assert {settings["criterion"] for settings in pruned} == set(CRITERIA)
    assert {settings["width_rule"] for settings in pruned} == {"inner", "all"}
    assert {settings["scope"] for settings in pruned} == {"layer", "global", "isomorphic"}
    for repair in ("batch_norm_repair", "ridge_repair"):
        assert {settings[repair] for settings in pruned} == {False, True}
    assert {r.batch_size for r in drawn} == {16, 32, 64, 128}
    assert {r.trainable_depth for r in drawn} == {0.0, 0.25, 0.5, 0.75, 1.0}
    assert {r.resolution for r in drawn} == {112, 168, 224}
    assert {r.target_flops for r in drawn} == set(RUNGS)


def test_a_dense_recipe_has_nothing_to_choose_about_pruning() -> None:
    ranges = {"pruning_ratio": 0, "batch_norm_repair": True}
    drawn = draw(filter_pruning, ranges, problem(), RandomSampler(seed=0))
    assert drawn.recipe.settings == ranges
    assert drawn.names[:3] == ("pruning_ratio", "batch_norm_repair", "optimizer")


def test_every_optimiser_has_the_rates_and_the_schedules_that_suit_it() -> None:
    drawn = recipes(problem())
    assert {r.optimizer for r in drawn} == set(Optimizer)
    for kind in Optimizer:
        rates = [r.learning_rate for r in drawn if r.optimizer is kind]
        low, high = (1e-4, 1e-1) if kind is Optimizer.SGD else (1e-5, 3e-2)
        assert low <= min(rates) < 5 * low
        assert high / 5 < max(rates) <= high
        schedules = {r.schedule for r in drawn if r.optimizer is kind}
        assert schedules == (
            {Schedule.CONSTANT}
            if kind is Optimizer.SCHEDULE_FREE_ADAMW
            else set(Schedule) - {Schedule.CONSTANT}
        )


def test_images_are_mixed_in_one_way_or_not_at_all_and_never_for_the_head_alone() -> None:
    drawn = recipes(problem())
    mixed = {(r.mixup, r.cutmix) for r in drawn if r.trainable_depth > 0}
    assert mixed == {(0.0, 0.0), (0.2, 0.0), (0.0, 1.0)}
    assert {(r.mixup, r.cutmix) for r in drawn if r.trainable_depth == 0} == {(0.0, 0.0)}


def test_classes_are_weighed_where_the_task_is_skewed() -> None:
    skewed = recipes(replace(problem(), class_imbalance=2.0), 60)
    assert min(r.class_weighting for r in skewed) < 0.1
    assert max(r.class_weighting for r in skewed) > 0.9
    assert {r.class_weighting for r in recipes(replace(problem(), class_imbalance=1.9), 60)} == {0}


def test_batches_are_drawn_by_ratio_not_by_difference() -> None:
    smallest = [r for r in recipes(problem()) if r.batch_size == 16]
    assert len(smallest) > 20, "one in six of 200; by difference it would be one in twenty"


def test_dense_has_a_real_chance() -> None:
    dense = [r for r in recipes(problem()) if ratio_of(r) == 0]
    assert 4 <= len(dense) <= 25, "one in twenty of 200"


@pytest.mark.parametrize(
    ("native", "sides"),
    [
        (8, {8}),
        (16, {16}),
        (24, {16, 24}),
        (28, {20, 28}),
        (32, {16, 24, 32}),
        (64, {32, 48, 64}),
        (96, {48, 72, 96}),
        (224, {112, 168, 224}),
        (299, {155, 227, 299}),
        (384, {192, 288, 384}),
    ],
)
def test_resolutions_are_parts_of_the_native_one(native: int, sides: set[int]) -> None:
    assert {r.resolution for r in recipes(problem(native_resolution=native), 40)} == sides


@pytest.mark.parametrize(
    ("train_images", "sizes"),
    [
        (1, {1}),
        (5, {4}),
        (20, {16}),
        (40, {16, 32}),
        (1_000, {16, 32, 64}),
        (50_000, {16, 32, 64, 128}),
        (60_000, {32, 64, 128}),
        (1_280_000, {128, 256, 512}),
    ],
)
def test_batches_surround_the_rule_of_nevis(train_images: int, sizes: set[int]) -> None:
    assert {r.batch_size for r in recipes(problem(train_images=train_images), 60)} == sizes


@settings(deadline=None, max_examples=60)
@given(
    native=st.integers(8, 1024),
    train_images=st.integers(1, 2_000_000),
    seed=st.integers(0, 2**32 - 1),
)
def test_any_task_gives_valid_recipes(native: int, train_images: int, seed: int) -> None:
    of = problem(native_resolution=native, train_images=train_images)
    recipe = draw(filter_pruning, {}, of, RandomSampler(seed=seed)).recipe
    assert min(16, native) <= recipe.resolution <= native
    assert recipe.batch_size <= train_images
    assert recipe.batch_size & (recipe.batch_size - 1) == 0
    if native % 8 == 0:
        assert recipe.resolution % 8 == 0
