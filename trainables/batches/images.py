"""What the training loop trains on: images through the whole model, or features through its head.

The loop is the same for both: it asks for the batch of a step, puts it through `trained(model)`,
and reads here what a step and a look at the validation split cost.
"""

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor, nn

from search_spaces.recipe import Recipe
from trainables.batches.epochs import Epochs
from trainables.costs.flops import StepCost
from trainables.images.augment import augment
from trainables.images.store import ImageStore
from trainables.learning.evaluation import evaluate
from trainables.seeds import generator

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


class ImageBatches:
    """Augmented images for the whole model."""

    setup_flops = 0.0
    setup_images = 0
    max_steps: int | None = None
    eval_setup_flops = 0.0

    def __init__(
        self,
        *,
        recipe: Recipe,
        seed: int,
        store: ImageStore,
        inputs: Inputs,
        cost: StepCost,
        inference_flops: float,
        mirror: bool,
        device: torch.device,
    ) -> None:
        """`cost` is that of training the model, `inference_flops` of what is measured of it."""
        self._recipe = recipe
        self._seed = seed
        self._split = store.splits["train"]
        self._validation = store.splits["validation"]
        self._epochs = Epochs(images=len(self._split), seed=seed)
        self._inputs = inputs
        self._mirror = mirror
        self._device = device
        self.step_images = recipe.batch_size
        self.step_flops = cost.train_flops * recipe.batch_size + cost.fixed_flops
        self.eval_flops = inference_flops * len(self._validation)

    def open(self) -> float:
        return 0.0

    def train(self, step: int) -> tuple[Tensor, Tensor]:
        indices = self._epochs.batch(step, size=self._recipe.batch_size)
        images = augment(
            self._split.images[indices].to(self._device, non_blocking=True),
            strength=self._recipe.augmentation,
            mirror=self._mirror,
            generator=generator(self._seed, "augment", step, device=self._device),
        )
        return self._inputs(images), self._split.labels[indices].to(self._device)

    def trained(self, model: nn.Module) -> nn.Module:
        return model

    def evaluate(self, model: nn.Module) -> tuple[float, float]:
        return evaluate(model, self._validation, self._inputs)
