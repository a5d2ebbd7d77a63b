"""Dense full finetuning: every weight is trained, and nothing is done to the backbone before.

A baseline (METHODS: what every frontier carries), and what every other method is when it is
switched off. No settings; `trainable_depth` must be 1.
"""

from collections.abc import Mapping
from typing import Any

from torch import nn

from search_spaces.recipe import Recipe
from trainables.mechanisms.trained_depth import check_depth
from trainables.method import Conditions, MethodContext, Prepared, Transfer
from trainables.settings import Settings


def check(recipe: Recipe, conditions: Conditions) -> None:
    """Raises `InputError` for settings, and for a `trainable_depth` below 1."""
    Settings.read(recipe.settings)
    check_depth(recipe, low=1.0, high=1.0, instead="last_stages trains a part")


def prepare(model: nn.Module, context: MethodContext) -> Prepared:
    """Does nothing."""
    return Prepared(flops=0.0)


def rebuild(model: nn.Module, structure: Mapping[str, Any], recipe: Recipe) -> Transfer:
    """Does nothing."""
    return Transfer()
