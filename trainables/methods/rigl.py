"""RigL: a sparse model whose connections move while it is trained (arXiv 1911.11134).

From the paper: each layer has a number of non-zeros that stays the same from the first step to the
last, by Erdos-Renyi-Kernel (`erk`) or equal densities (`uniform`). Now and then the share
f(t) = alpha / 2 * (1 + cos(pi * t / T_end)) of a layer's connections with the smallest magnitudes
is dropped, and as many are grown where the loss has its largest gradients, from zero and among all
that are not kept; the gradient is the one that the step has anyway, taken before the mask, so that
no compute is added. Nothing moves from T_end on.

Ours, in the spirit of the paper: transfer, so that the first masks keep the largest pretrained
weights of each layer rather than random ones; T_end at three quarters of the steps; a number of
updates, evenly spread until then, rather than of steps between them, because budgets differ by
orders of magnitude. The step of an update still trains the connections that are kept (the paper's
takes none), while those that are grown wait at zero for the next. A layer never drops more than it
has room to grow, so that dense ones stay as they are. The optimiser keeps its moments of
connections that are grown. A rung measures the average under the masks of its step: it has the
number of zeros asked for, and more only where a connection that was just grown is zero still.

Settings: `sparsity` in [0, 1), of all convolutions and linear layers below the head together,
rounded as `trainables.mechanisms.sparsity` says; `distribution` (erk, uniform); `update_fraction`
alpha in [0, 1], where 0 never moves the masks; `updates`, 1 or more. `trainable_depth` must be 1,
because connections are grown by their gradients. Sparsity 0 is plain finetuning, whatever the other
settings.
"""

from collections.abc import Mapping
from enum import StrEnum
from math import cos, floor, pi
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor, nn

from search_spaces.recipe import Recipe
from trainables.backbones.layers import backbone_weights
from trainables.mechanisms.masks import MaskedTransfer, mask_tensors
from trainables.mechanisms.sparsity import (
    check_sparsity,
    erdos_renyi_counts,
    keep_counts,
    uniform_counts,
)
from trainables.method import Conditions, MethodContext, Prepared, Transfer
from trainables.settings import Settings, check_depth

END = 0.75
"""Share of the steps after which connections stay where they are."""


class Distribution(StrEnum):
    """The way in which the values that stay are spread over the layers."""

    ERK = "erk"
    """Erdos-Renyi-Kernel: small layers are denser."""
    UNIFORM = "uniform"
    """All layers are equally sparse."""


class _Settings(Settings):
    sparsity: float = Field(ge=0, lt=1)
    distribution: Annotated[Distribution, Field(strict=False)] = Distribution.ERK
    update_fraction: float = Field(default=0.3, ge=0, le=1)
    updates: int = Field(default=10, ge=1)


def check(recipe: Recipe, conditions: Conditions) -> None:
    """Raises `InputError` for settings, a depth below 1, and a model that cannot be masked."""
    settings = _Settings.read(recipe.settings)
    if settings.sparsity > 0:
        check_depth(recipe, low=1.0, high=1.0, instead="connections are grown by their gradients")
        check_sparsity(conditions.model, settings.sparsity)


def prepare(model: nn.Module, context: MethodContext) -> Prepared:
    """Chooses the first masks; costs nothing."""
    settings = _Settings.read(context.recipe.settings)
    if settings.sparsity == 0:
        return Prepared(flops=0.0)
    return Prepared(flops=0.0, tensors=mask_tensors(_first_masks(model, settings)))


def transfer(recipe: Recipe, structure: Mapping[str, Any]) -> Transfer:
    """Returns a transfer whose masks move."""
    settings = _Settings.read(recipe.settings)
    return RigL(settings) if settings.sparsity > 0 else Transfer()


class RigL(MaskedTransfer):
    """Moves the masks, of which each keeps its number of free values.

    A run of more steps moves them at other ones and is taken to share none.
    """

    def __init__(self, settings: _Settings) -> None:
        super().__init__()
        self._settings = settings
        self._grown: dict[str, Tensor] = {}  # by the update of this step

    def shared_steps(self, *, total_steps: int) -> int:
        return 0

    @torch.no_grad()
    def after_backward(self, *, step: int, total_steps: int) -> None:
        fraction = self._fraction(step, total_steps)
        self._grown = self._move(fraction) if fraction > 0 else {}
        super().after_backward(step=step, total_steps=total_steps)
        for name, grown in self._grown.items():
            if (gradient := self.weights[name].grad) is not None:
                gradient.masked_fill_(grown, 0.0)

    @torch.no_grad()
    def after_update(self, *, step: int, total_steps: int) -> None:
        super().after_update(step=step, total_steps=total_steps)
        for name, grown in self._grown.items():  # momentum moves them without a gradient
            self.weights[name].masked_fill_(grown, 0.0)

    def _fraction(self, step: int, total_steps: int) -> float:
        """Share (0-1) of a layer's connections that this step moves; 0 where no update is due."""
        end = floor(END * total_steps)
        intervals = self._settings.updates + 1
        if not 0 < step < end or step * intervals // end == (step - 1) * intervals // end:
            return 0.0
        return self._settings.update_fraction / 2 * (1 + cos(pi * step / end))

    def _move(self, fraction: float) -> dict[str, Tensor]:
        """Drops and grows connections; returns masks of the grown ones, by weight."""
        moved, grown = {}, {}
        for name, weight in self.weights.items():
            mask = self.masks[name]
            free = int(mask.count_nonzero())
            count = min(floor(fraction * free), mask.numel() - free)
            if count == 0 or weight.grad is None:
                continue
            kept = _largest(weight.abs().masked_fill(~mask, -1.0), free - count)
            grown[name] = _largest(weight.grad.abs().masked_fill(kept, -1.0), count)
            moved[name] = kept | grown[name]
        self.set_masks(moved)
        return grown


def _largest(scores: Tensor, count: int) -> Tensor:
    return keep_counts({"": scores}, {"": count})[""]


def _first_masks(model: nn.Module, settings: _Settings) -> dict[str, Tensor]:
    magnitudes = {name: w.detach().abs() for name, w in backbone_weights(model).items()}
    counts_of = {Distribution.ERK: erdos_renyi_counts, Distribution.UNIFORM: uniform_counts}
    shapes = {name: tuple(score.shape) for name, score in magnitudes.items()}
    counts = counts_of[settings.distribution](shapes, sparsity=settings.sparsity)
    return keep_counts(magnitudes, counts)
