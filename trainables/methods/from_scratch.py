"""From scratch: the backbone's architecture with random weights, all of them trained.

A baseline that tells what the pretrained weights are worth. Weights are drawn as the model's
constructor draws them, from the trial's seed. No settings; `trainable_depth` must be 1.
"""

from collections.abc import Mapping
from typing import Any

from torch import nn

from search_spaces.recipe import Recipe
from trainables.method import Conditions, MethodContext, Prepared, Transfer
from trainables.settings import Settings, check_depth


def check(recipe: Recipe, conditions: Conditions) -> None:
    """Raises `InputError` for settings, and for a `trainable_depth` below 1."""
    Settings.read(recipe.settings)
    check_depth(recipe, low=1.0, high=1.0, instead="random layers have to be trained")


def prepare(model: nn.Module, context: MethodContext) -> Prepared:
    """Forgets the pretrained weights and statistics."""
    model.load_state_dict(context.fresh().state_dict())
    return Prepared(flops=0.0)


def transfer(recipe: Recipe, structure: Mapping[str, Any]) -> Transfer:
    """Returns plain finetuning."""
    return Transfer()
