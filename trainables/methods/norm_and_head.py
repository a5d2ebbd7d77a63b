"""Norm and head: the gains and biases of all normalisation layers, and a new classifier.

A baseline (the norms-only training of BitFit's and "Training BatchNorm and Only BatchNorm", arXiv
2003.00152, for transfer). Batch statistics move with the images too. The backward pass goes
through the whole network and is counted, while no convolution has a weight gradient. Ours: biases
of convolutions stay. No settings; `trainable_depth` must be 1, because norms are trained at every
depth.
"""

from collections.abc import Mapping
from typing import Any

from torch import nn

from search_spaces.recipe import Recipe
from trainables.backbones.layers import norm_parameters
from trainables.errors import InputError
from trainables.learning.freezing import train_norms_and_head
from trainables.method import Conditions, Transfer
from trainables.settings import Settings, check_depth


def check(recipe: Recipe, conditions: Conditions) -> None:
    """Raises `InputError` for settings, a depth below 1 and a model without norms."""
    Settings.read(recipe.settings)
    check_depth(recipe, low=1.0, high=1.0, instead="norms are trained at every depth")
    if not norm_parameters(conditions.model):
        raise InputError(
            f"norm_and_head trains norms, and {type(conditions.model).__name__} has none with "
            "weights; choose another method."
        )


def transfer(recipe: Recipe, structure: Mapping[str, Any]) -> Transfer:
    """Returns plain finetuning of norms and head."""
    return NormAndHead()


class NormAndHead(Transfer):
    """Switches the gradients of everything else off."""

    def attach(self, model: nn.Module) -> None:
        train_norms_and_head(model)
