"""Last stages: the head and the layers nearest to it are trained, the layers below are frozen.

A baseline. Nothing runs backward below the lowest trained layer, and frozen batch norms keep their
statistics. No settings: `trainable_depth` is the share of the layer groups that is trained, and
must lie strictly between 0 (`linear_probe`) and 1 (`full`).
"""

from collections.abc import Mapping
from typing import Any

from search_spaces.recipe import Recipe
from trainables.errors import InputError
from trainables.method import Conditions, Transfer
from trainables.settings import Settings


def check(recipe: Recipe, conditions: Conditions) -> None:
    """Raises `InputError` for settings, and for a `trainable_depth` of 0 or 1."""
    Settings.read(recipe.settings)
    if recipe.trainable_depth in (0.0, 1.0):
        raise InputError(
            f"last_stages with trainable_depth={recipe.trainable_depth:g} must lie between 0 and "
            "1; linear_probe trains the head alone and full trains everything."
        )


def transfer(recipe: Recipe, structure: Mapping[str, Any]) -> Transfer:
    """Returns plain finetuning."""
    return Transfer()
