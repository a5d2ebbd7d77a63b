"""Dense full finetuning: every weight is trained, and nothing is done to the backbone before.

A baseline that every frontier carries; every other method that can be switched off is this one
then. No settings; `trainable_depth` must be 1.
"""

from collections.abc import Mapping
from typing import Any

from search_spaces.recipe import Recipe
from trainables.method import Conditions, Transfer
from trainables.settings import Settings, check_depth


def check(recipe: Recipe, conditions: Conditions) -> None:
    """Raises `InputError` for settings, and for a `trainable_depth` below 1."""
    Settings.read(recipe.settings)
    check_depth(recipe, low=1.0, high=1.0, instead="last_stages trains a part")


def transfer(recipe: Recipe, structure: Mapping[str, Any]) -> Transfer:
    """Returns plain finetuning."""
    return Transfer()
