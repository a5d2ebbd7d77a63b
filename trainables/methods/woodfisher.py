"""WoodFisher: weights are removed by a second-order model of the loss, then the rest is trained.

From the paper (arXiv 2004.14340; transferred sparse in 2111.13445): an empirical Fisher in diagonal
blocks from single samples' gradients with their true labels, inverted by Woodbury's identity with
dampening; the weights with the smallest w² / (2 [F⁻¹]_qq) go, and those that stay move to make up
for it. The masks are fixed through the transfer.

Ours: the removed weights of a block go together, by the exact joint minimum where the paper adds up
the updates of single ones; the gradients are those of the new task under a classifier that was just
made; sparsity is reached in one shot; every layer keeps at least one weight; and batch norms may
be re-estimated afterwards, because their inputs have changed.

Settings: `sparsity` in [0, 1) of all convolution and linear weights below the head, where 0
switches the method off, heeds no other setting and is plain finetuning; `scope` (layer, global) in
which they are ranked; `block_size`, at least 1; `samples`, at least 1 (at most all training images
are used); `dampening` > 0, on the scale of squared gradients, and far above it the method is
magnitude pruning; `batch_norm_repair` (true, false). Any `trainable_depth`: 0 is the linear regime.
While it prepares, memory holds the weights × `block_size` floats.
"""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor, nn

from search_spaces.recipe import Recipe
from trainables.backbones.layers import backbone_weights
from trainables.errors import InfeasibleError
from trainables.mechanisms.batch_norm_repair import repair_batch_norms
from trainables.mechanisms.block_fisher import BlockFisher
from trainables.mechanisms.masks import MaskedTransfer, mask_tensors
from trainables.mechanisms.sample_gradients import gradients_of, sample_gradients
from trainables.mechanisms.sparsity import SparsityScope, check_sparsity, keep_largest
from trainables.method import Conditions, MethodContext, Prepared, Transfer
from trainables.settings import Settings


class _Settings(Settings):
    sparsity: float = Field(ge=0, lt=1)
    scope: Annotated[SparsityScope, Field(strict=False)] = SparsityScope.GLOBAL
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
    classifier's weight gradient; the algebra that `BlockFisher` counts; the forward passes of the
    re-estimation. Raises `InfeasibleError` where there is no image or the inverse is lost.
    """
    settings = _Settings.read(context.recipe.settings)
    if settings.sparsity == 0:
        return Prepared(flops=0.0)
    return _Preparation(model, context, settings).run()


def transfer(recipe: Recipe, structure: Mapping[str, Any]) -> Transfer:
    """Returns a transfer whose masks stay."""
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
        masks = keep_largest(scores, sparsity=settings.sparsity, scope=settings.scope)
        with torch.no_grad():
            for name, weight in self._weights.items():
                fisher = fishers.pop(name)
                before = fisher.flops
                weight.copy_(fisher.without(weight, masks[name]))
                algebra += fisher.flops - before
        self._flops += algebra
        if settings.batch_norm_repair:
            self._flops += repair_batch_norms(self._model, self._context)
        return Prepared(flops=self._flops, tensors=mask_tensors(masks))

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
