"""Linear probe: a new classifier on the frozen backbone.

A baseline, and the *linear* regime of "How Well Do Sparse ImageNet Models Transfer?" (arXiv
2111.13445), where features are extracted once and no image is augmented. Ours: extraction is
charged to every recipe as if it ran alone, and a budget that cannot pay for all images trains on
the features of those it can pay for. No settings; `trainable_depth` must be 0.
"""

from collections.abc import Mapping
from typing import Any

from torch import nn

from search_spaces.recipe import Recipe
from trainables.mechanisms.trained_depth import check_depth
from trainables.method import Conditions, MethodContext, Prepared, Transfer
from trainables.settings import Settings


def check(recipe: Recipe, conditions: Conditions) -> None:
    """Raises `InputError` for settings, and for a `trainable_depth` above 0."""
    Settings.read(recipe.settings)
    check_depth(recipe, low=0.0, high=0.0, instead="last_stages trains layers below the head")


def prepare(model: nn.Module, context: MethodContext) -> Prepared:
    """Does nothing."""
    return Prepared(flops=0.0)


def rebuild(model: nn.Module, structure: Mapping[str, Any], recipe: Recipe) -> Transfer:
    """Does nothing."""
    return Transfer()
