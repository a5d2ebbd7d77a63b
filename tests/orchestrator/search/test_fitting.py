"""A recipe from elsewhere becomes what the space has of it, or is refused with what to write."""

from dataclasses import replace
from typing import Any

import pytest
from optuna.samplers import RandomSampler

from orchestrator.search.fitting import OfferedSpace
from orchestrator.search.given import GivenDraws, NotOfferedError
from orchestrator.search.portfolio import KnownRecipe
from search_spaces.draws import draw
from search_spaces.joint import joint
from search_spaces.methods.filter_pruning import filter_pruning
from search_spaces.methods.full import full
from search_spaces.problem import Problem
from search_spaces.ranges import Ranges
from search_spaces.recipe import InvalidRecipeError, Recipe
from search_spaces.space import Space, Trial
from tests.orchestrator.search.asked_trials import PROBLEM
from trainables.errors import InputError


def space_of(space: Space = filter_pruning, **ranges: Any) -> OfferedSpace:
    return OfferedSpace(space=space, ranges=ranges, problem=PROBLEM)


def recipe_of(offered: OfferedSpace, values: dict[str, Any], *, seed: int = 0) -> Recipe:
    """The recipe that the values make with others drawn by chance."""
    given = GivenDraws(values, RandomSampler(seed=seed))
    return draw(offered.space, offered.ranges, offered.problem, given).recipe


# what a user writes


@pytest.mark.parametrize(
    "written",
    [
        {},
        {"pruning_ratio": 0.3, "criterion": "l2", "learning_rate": 0.01},
        {"optimizer": "adamw", "adamw_rate": 0.001},
        {"clip_norm": 1, "batch_norm_repair": True},
    ],
)
def test_parameters_are_taken_as_they_are(written: dict[str, Any]) -> None:
    assert space_of().written(written, key="space.start.0") == written


def test_fields_of_the_recipe_find_their_parameters() -> None:
    offered = space_of()
    written = {"optimizer": "adamw", "learning_rate": 0.002, "mixup": 0.2, "cutmix": 0.0}
    values = offered.written(written | {"trainable_depth": 1.0}, key="space.start.0")
    for seed in range(8):
        recipe = recipe_of(offered, values, seed=seed)
        assert (recipe.learning_rate, recipe.mixup, recipe.cutmix) == (0.002, 0.2, 0.0)


def test_a_whole_recipe_as_the_frontier_prints_it_is_written_back() -> None:
    offered = space_of(joint)
    drawn = [draw(joint, {}, PROBLEM, RandomSampler(seed=seed)).recipe for seed in range(24)]
    for recipe in drawn:
        written = {name: v for name, v in recipe.flat().items() if name != "target_flops"}
        values = offered.written(written, key="space.start.0")
        again = recipe_of(offered, values)
        assert replace(again, target_flops=1.0) == replace(recipe, target_flops=1.0)


@pytest.mark.parametrize(
    ("space", "written", "sentence"),
    [
        (filter_pruning, {"pruning_ratio": 1.3}, r"pruning_ratio=1\.3 must lie within \[0, 0.95\]"),
        (filter_pruning, {"pruning_ratio": 0.33}, r"=0\.33 is no value .* nearest one is 0\.35\."),
        (filter_pruning, {"pruning_ration": 0.3}, r"names no parameter .* mean pruning_ratio\?"),
        (filter_pruning, {"criterion": "l3"}, r"criterion='l3' is not offered; choose among l1,"),
        (filter_pruning, {"batch_norm_repair": 1}, r"repair=1 is not offered; choose .* True\."),
        (
            filter_pruning,
            {"pruning_ratio": 0, "criterion": "l1"},
            r"criterion='l1' is asked for by",
        ),
        (filter_pruning, {"mixup": 0.5}, r"mixup=0\.5 cannot be had: .* from mixing here; write"),
        (filter_pruning, {"target_rung": 1}, r"target_rung=1 is not the recipe's to say, .* leave"),
        (filter_pruning, {"target_flops": 1e9}, r"target_flops=1000000000\.0 is not the recipe's"),
        (filter_pruning, {"batch_size": [32, 64]}, r"batch_size=\[32, 64\] must be a number"),
        (
            full,
            {"trainable_depth": 0.5},
            r"trainable_depth=0\.5 cannot be had: .* have 1\.0; leave",
        ),
        (full, {"method": "lora"}, r"method='lora' cannot be had: .* have 'full'; leave it out\."),
        (full, {"learning_rate": 0.01, "adamw_rate": 0.001}, r"start\.0 has values that no recipe"),
        (joint, {"method": "pac_net"}, r"method='pac_net' is not offered; choose among ac_dc,"),
    ],
)
def test_what_no_recipe_has_is_refused_with_what_to_write(
    space: Space, written: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(InputError, match=sentence) as refused:
        space_of(space).written(written, key="space.start.0")
    assert str(refused.value).startswith("space.start.0")


def test_ranges_hold_for_the_start_too() -> None:
    with pytest.raises(InputError, match=r"learning_rate=0\.1 must lie within \[0\.001, 0\.01\]"):
        space_of(optimizer="sgd", learning_rate=[1e-3, 1e-2]).written(
            {"learning_rate": 0.1}, key="space.start.0"
        )
    with pytest.raises(InputError, match=r"batch_size=32 cannot be had: .* have 64; leave it out"):
        space_of(batch_size=64).written({"batch_size": 32}, key="space.start.0")


def test_values_that_make_no_recipe_are_refused_with_its_rule() -> None:
    def picky(trial: Trial, problem: Problem) -> Recipe:
        if trial.suggest_categorical("luck", ("good", "bad")) == "bad":
            raise InvalidRecipeError("luck='bad' must be good.")
        return filter_pruning(trial, problem)

    offered = space_of(picky, learning_rate=0.01)
    assert offered.written({"luck": "good"}, key="space.start.0") == {"luck": "good"}
    with pytest.raises(InputError, match=r"space\.start\.0 makes no recipe: luck='bad' must be go"):
        offered.written({"luck": "bad"}, key="space.start.0")


# what other sweeps know


def known(
    values: dict[str, Any], *, method: str = "full", side: float | None = None
) -> KnownRecipe:
    return KnownRecipe(
        sweep="birds", trial="7", method=method, values=values, side=side, errors=(0.5,)
    )


SGD = {"optimizer": "sgd", "schedule": "cosine", "learning_rate": 0.02, "weight_decay": 1e-4}


def test_a_known_recipe_is_told_in_the_spaces_own_values() -> None:
    fitted = space_of(joint).known(known({**SGD, "batch_size": 64, "trainable_depth": 1.0}))
    assert fitted.values == {"method": "full", **SGD, "batch_size": 64}
    assert fitted.moved == ()


@pytest.mark.parametrize(("share", "side"), [(1.0, 32), (0.75, 24), (0.1, 16)])
def test_images_keep_their_share_of_the_native_side(share: float, side: int) -> None:
    fitted = space_of(full).known(known(SGD, side=share))
    assert fitted.values["resolution"] == side
    assert fitted.moved == ()


def test_numbers_move_into_range_and_that_is_told() -> None:
    ranges: Ranges = {"learning_rate": [1e-4, 1e-2], "weight_decay": 1e-3}
    fitted = space_of(full, **ranges).known(known({**SGD, "batch_size": 4096}))
    assert fitted.values["learning_rate"] == 0.01
    assert fitted.values["batch_size"] == 128
    assert "weight_decay" not in fitted.values
    assert fitted.moved == ("batch_size", "learning_rate")


@pytest.mark.parametrize(
    ("space", "ranges", "recipe", "reason"),
    [
        (joint, {}, known(SGD, method="pac_net"), "method='pac_net' is not offered"),
        (joint, {"method": "lora"}, known(SGD), "method='full' is not offered"),
        (filter_pruning, {}, known(SGD), "method='full' is not offered"),
        (full, {"optimizer": "adamw"}, known(SGD), "optimizer='sgd' is not offered"),
        (full, {"optimizer": ["adamw", "schedule_free_adamw"]}, known(SGD), "optimizer='sgd' is"),
        (full, {}, known({**SGD, "mixing": "all"}), "mixing='all' is not offered"),
    ],
)
def test_a_choice_that_is_not_offered_rules_a_recipe_out(
    space: Space, ranges: dict[str, Any], recipe: KnownRecipe, reason: str
) -> None:
    with pytest.raises(NotOfferedError, match=reason):
        space_of(space, **ranges).known(recipe)
