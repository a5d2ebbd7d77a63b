"""A recipe keeps its rules, survives JSON, and keeps its name when fields are added."""

import json
from typing import Any

import pytest

from search_spaces.recipe import InvalidRecipeError, Optimizer, Recipe, Schedule

OLDER: dict[str, Any] = {
    "method": "filter_pruning",
    "settings": {"pruning_ratio": 0.5},
    "learning_rate": 0.01,
    "weight_decay": 1e-4,
    "batch_size": 32,
    "label_smoothing": 0.1,
    "layer_decay": 1.0,
    "trainable_depth": 1.0,
    "resolution": 32,
    "augmentation": 0.0,
    "target_flops": 1e9,
}
"""A recipe that was stored before recipes chose an optimiser."""


def test_an_older_recipe_is_read_as_what_was_done_then_and_keeps_its_id() -> None:
    recipe = Recipe.from_dict(OLDER)
    assert recipe.recipe_id == "1caedae8a847"
    assert (recipe.optimizer, recipe.schedule) == (Optimizer.SGD, Schedule.COSINE)
    assert (recipe.clip_norm, recipe.mixup, recipe.cutmix, recipe.class_weighting) == (0,) * 4
    assert Recipe.from_dict(OLDER | {"mixup": 0}).recipe_id == recipe.recipe_id


@pytest.mark.parametrize(
    "changes",
    [
        {"optimizer": "adamw"},
        {"schedule": "linear"},
        {"clip_norm": 1.0},
        {"mixup": 0.2},
        {"cutmix": 1.0},
        {"class_weighting": 0.5},
        {"optimizer": "schedule_free_adamw", "schedule": "constant"},
    ],
)
def test_a_recipe_survives_json_and_its_id_tells_its_fields(changes: dict[str, Any]) -> None:
    recipe = Recipe.from_dict(OLDER | changes)
    again = Recipe.from_dict(json.loads(json.dumps(recipe.to_dict())))
    assert again == recipe
    assert again.recipe_id == recipe.recipe_id != Recipe.from_dict(OLDER).recipe_id
    assert type(recipe.flat()["optimizer"]) is str, "plain for tables"
    assert type(recipe.flat()["schedule"]) is str


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        (
            {"optimizer": "lion"},
            "optimizer='lion' must be one of sgd, adamw, schedule_free_adamw.",
        ),
        ({"schedule": "step"}, "schedule='step' must be one of constant, cosine, linear, warmup"),
        (
            {"optimizer": "schedule_free_adamw"},
            "schedule='cosine' must be 'constant' with a schedule-free optimizer.",
        ),
        ({"clip_norm": -1.0}, "clip_norm=-1.0 must not be negative; 0 means no clipping."),
        ({"mixup": -0.1}, "mixup=-0.1 must be finite and not negative; 0 means none."),
        ({"cutmix": float("inf")}, "cutmix=inf must be finite and not negative; 0 means none."),
        ({"class_weighting": 1.5}, r"class_weighting=1.5 must lie in \[0, 1\]; 0 counts images"),
        ({"momentum": 0.9}, "A recipe has no field 'momentum'"),
    ],
)
def test_a_bad_value_is_refused_in_one_sentence(changes: dict[str, Any], complaint: str) -> None:
    with pytest.raises(InvalidRecipeError, match=complaint):
        Recipe.from_dict(OLDER | changes)


def test_a_setting_may_not_take_the_name_of_a_field() -> None:
    with pytest.raises(InvalidRecipeError, match="settings.schedule='gradual' has the name of a"):
        Recipe.from_dict(OLDER | {"settings": {"schedule": "gradual"}})
