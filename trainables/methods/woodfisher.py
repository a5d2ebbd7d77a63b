"""WoodFisher: weights are removed by a second-order model of the loss, then the rest is trained.

From the paper (arXiv 2004.14340; transferred sparse in 2111.13445): an empirical Fisher in diagonal
blocks from single samples' gradients with their true labels, inverted by Woodbury's identity with
dampening; the weights with the smallest w² / (2 [F⁻¹]_qq) go, and those that stay move to make up
for it. The masks are fixed through the transfer.

Ours: the removed weights of a block go together, by the exact joint minimum where the paper adds up
the updates of single ones; the gradients are those of the new task under a classifier that was just
made; sparsity is reached in one shot; every layer keeps at least one weight; and batch norms may
be re-estimated afterwards, for what reaches them has changed.

Settings: `sparsity` in [0, 1) of all convolution and linear weights below the head, where 0
switches the method off, heeds no other setting and is plain finetuning; `scope` (layer, global) in
which they are ranked; `block_size`, at least 1; `samples`, at least 1 (at most all training images
are used); `dampening` > 0, on the scale of squared gradients, and far above it the method is
magnitude pruning; `batch_norm_repair` (true, false). Any `trainable_depth`: 0 is the linear regime.
While it prepares, memory holds the weights × `block_size` floats.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from search_spaces.recipe import Recipe
from trainables.backbones.layers import backbone_weights
from trainables.errors import InfeasibleError
from trainables.learning.batch_norm import reestimate_batch_norm
from trainables.mechanisms.block_fisher import BlockFisher
from trainables.mechanisms.masks import MaskedTransfer
from trainables.mechanisms.sample_gradients import gradients_of, sample_gradients
from trainables.mechanisms.sparsity import Scope, check_sparsity, keep_largest
from trainables.method import Conditions, MethodContext, Prepared, Transfer
from trainables.settings import Settings

CALIBRATION_IMAGES = 256
"""Training images passed forward to re-estimate batch norms; their cost counts."""


class _Settings(Settings):
    sparsity: float = Field(ge=0, lt=1)
    scope: Literal["layer", "global"] = "global"
    block_size: int = Field(default=32, ge=1)
    samples: int = Field(default=256, ge=1)
    dampening: float = Field(default=1e-5, gt=0)
    batch_norm_repair: bool = True


def check(recipe: Recipe, conditions: Conditions) -> None:
    """Raises `InputError` for settings out of range and for a model that cannot be that sparse."""
    check_sparsity(conditions.model, _Settings.read(recipe.settings).sparsity)


def prepare(model: nn.Module, context: MethodContext) -> Prepared:
    """Removes weights, moves the others, and re-estimates batch norms.

    Costs, all counted: a forward and backward pass for each of `samples` images, without the
    classifier's weight gradient; the algebra that `BlockFisher` tells; `CALIBRATION_IMAGES` forward
    passes. Raises `InfeasibleError` where there is no image or the inverse is lost.
    """
    settings = _Settings.read(context.recipe.settings)
    if settings.sparsity == 0:
        return Prepared(flops=0.0)
    return _Preparation(model, context, settings).run()


def rebuild(model: nn.Module, structure: Mapping[str, Any], recipe: Recipe) -> Transfer:
    """Does nothing to the structure; the masks come with `restore`."""
    return Transfer() if _Settings.read(recipe.settings).sparsity == 0 else MaskedTransfer()


class _Preparation:
    """One model on its way from dense to sparse, and what that has cost so far."""

    def __init__(self, model: nn.Module, context: MethodContext, settings: _Settings) -> None:
        self._model = model
        self._context = context
        self._settings = settings
        self._weights = backbone_weights(model)
        self._flops = 0.0

    def run(self) -> Prepared:
        settings = self._settings
        batches = list(self._context.labelled(settings.samples))
        if not batches:
            raise InfeasibleError("There is no labelled image to differentiate the loss of.")
        fishers = self._fishers(batches)
        algebra = sum(fisher.flops for fisher in fishers.values())
        try:
            scores = {n: f.loss_increases(self._weights[n]) for n, f in fishers.items()}
        except InfeasibleError as error:
            raise InfeasibleError(str(error), spent_flops=self._flops + algebra) from error
        masks = keep_largest(scores, sparsity=settings.sparsity, scope=Scope(settings.scope))
        with torch.no_grad():
            for name, weight in self._weights.items():
                fisher = fishers.pop(name)
                before = fisher.flops
                weight.copy_(fisher.without(weight, masks[name]))
                algebra += fisher.flops - before
        self._flops += algebra
        self._repair()
        return Prepared(flops=self._flops, transfer=MaskedTransfer(masks))

    def _fishers(self, batches: Sequence[tuple[Tensor, Tensor]]) -> dict[str, BlockFisher]:
        images = sum(len(labels) for _, labels in batches)
        fishers = {
            name: BlockFisher(
                weight,
                block_size=self._settings.block_size,
                dampening=self._settings.dampening,
                samples=images,
            )
            for name, weight in self._weights.items()
        }
        with gradients_of(self._model, self._weights.keys()):
            for gradients in sample_gradients(self._model, batches):
                for name, fisher in fishers.items():
                    fisher.add(gradients[name])
            self._flops += images * self._context.train_flops()
        return fishers

    def _repair(self) -> None:
        if not self._settings.batch_norm_repair:
            return
        batches = self._context.calibration(CALIBRATION_IMAGES)
        if images := reestimate_batch_norm(self._model, batches):
            self._flops += images * self._context.forward_flops()
