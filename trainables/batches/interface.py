"""The interface between the training loop and its batches, of images or of features.

The loop is the same for both: it asks for the batch of a step, puts it through `trained(model)`,
and reads here what a step and a look at the validation split cost.
"""

from collections.abc import Callable
from typing import Protocol

from torch import Tensor, nn

Inputs = Callable[[Tensor], Tensor]
"""Normalised input [B, 3, r, r], on the device, of images [B, 3, R, R], 0-255."""


class Batches(Protocol):
    """One recipe's training and validation data."""

    setup_flops: float
    """Training FLOPs before the first step, as if the recipe ran alone."""
    step_flops: float
    """Training FLOPs of a step."""
    step_images: int
    """Images a step passes through the whole model."""
    setup_images: int
    """Images passed forward through it before the first step."""
    max_steps: int | None
    """Steps after which the trial ends though it could afford more; None without limit."""
    depends_on_target: bool
    """Whether steps are fed something else where the recipe aims at more compute."""
    eval_setup_flops: float
    """FLOPs that come before the first look at the validation split."""
    eval_flops: float
    """FLOPs of each look at the validation split."""

    def open(self) -> float:
        """Makes the batches ready; returns what was executed of `setup_flops` to do so.

        Called once, before the first batch and after the model has its final frozen weights.
        """

    def train(self, step: int) -> tuple[Tensor, Tensor]:
        """The inputs [B, ...] and labels [B] of `step`, which counts from 0, on the device."""

    def trained(self, model: nn.Module) -> nn.Module:
        """The part of `model` that takes the inputs and gives logits."""

    def evaluate(self, model: nn.Module) -> tuple[float, float]:
        """Error (0-1) and mean cross-entropy (nats) of `model` on the validation split."""
