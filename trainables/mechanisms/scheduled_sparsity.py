"""Scheduled sparsity: masks by magnitude that tighten and loosen while the model is trained.

A model that is measured at a rung keeps the promise of the end all the same: the average is
compressed to the sparsity asked for, from the weights that the masks of that step left it.
"""

from collections.abc import Mapping
from typing import Protocol

import torch
from torch import Tensor, nn

from trainables.backbones.layers import backbone_weights
from trainables.mechanisms.masks import MaskedTransfer, Masks
from trainables.mechanisms.sparsity import (
    SparsityScope,
    keep_counts,
    keep_largest,
    kept_values,
    uniform_counts,
)
from trainables.method import Transfer


class Share(Protocol):
    """A schedule of sparsity."""

    def __call__(self, step: int, total_steps: int) -> float:
        """Share (0-1) of the values to go in the end that this step holds at zero."""


class ScheduledSparsity(MaskedTransfer):
    """Masks of the largest magnitudes, chosen anew whenever the schedule moves.

    Where it lets values go again, they start at zero. Every layer must be trained. A run of more
    steps follows the schedule more slowly and is taken to share none.
    """

    def __init__(self, share: Share, *, sparsity: float, scope: SparsityScope) -> None:
        super().__init__()
        self._share = share
        self._sparsity = sparsity
        self._scope = scope

    def shared_steps(self, *, total_steps: int) -> int:
        return 0

    def before_forward(self, *, step: int, total_steps: int) -> None:
        share = self._share(step, total_steps)
        before = self._share(step - 1, total_steps) if step > 0 else 0.0
        if share != before:
            self.set_masks(self._largest(self.weights, share=share))

    def masks_of(self, average: nn.Module) -> Masks:
        weights = backbone_weights(average)
        masked = {name: weight * self.masks[name] for name, weight in weights.items()}
        return self._largest(masked, share=1.0)

    def updated_params(self, model: nn.Module) -> int:
        sizes = [weight.numel() for weight in self.weights.values()]
        gone = sum(sizes) - kept_values(sizes, self._sparsity)
        return Transfer.updated_params(self, model) - gone

    @torch.no_grad()
    def _largest(self, weights: Mapping[str, Tensor], *, share: float) -> Masks:
        """Masks with the share of the zeros asked for; those of a larger share are subsets."""
        magnitudes = {name: weight.abs() for name, weight in weights.items()}
        if self._scope is SparsityScope.GLOBAL:
            return keep_largest(magnitudes, sparsity=share * self._sparsity, scope=self._scope)
        shapes = {name: tuple(weight.shape) for name, weight in weights.items()}
        kept = uniform_counts(shapes, sparsity=self._sparsity)
        sizes = {name: weight.numel() for name, weight in weights.items()}
        gone = {name: round(share * (sizes[name] - kept[name])) for name in sizes}
        return keep_counts(magnitudes, {name: sizes[name] - gone[name] for name in sizes})
