"""Linear probe: a new classifier on the frozen backbone.

A baseline, and the *linear* regime of "How Well Do Sparse ImageNet Models Transfer?" (arXiv
2111.13445), where features are extracted once and no image is augmented. Ours: extraction is
charged to every recipe as if it ran alone, and a budget that cannot pay for all images trains on
the features of those it can pay for. No settings; `trainable_depth` must be 0.
"""

from collections.abc import Mapping
from typing import Any

from search_spaces.recipe import Recipe
from trainables.method import Conditions, Transfer
from trainables.settings import Settings, check_depth


def check(recipe: Recipe, conditions: Conditions) -> None:
    """Raises `InputError` for settings, and for a `trainable_depth` above 0."""
    Settings.read(recipe.settings)
    check_depth(recipe, low=0.0, high=0.0, instead="last_stages trains layers below the head")


def transfer(recipe: Recipe, structure: Mapping[str, Any]) -> Transfer:
    """Returns plain finetuning."""
    return Transfer()
