"""Batches of images, augmented, for the whole model."""

import torch
from torch import Tensor, nn

from search_spaces.recipe import Recipe
from trainables.batches.epochs import Epochs
from trainables.batches.interface import Inputs
from trainables.costs.flops import StepCost
from trainables.images.augment import augment
from trainables.images.store import ImageStore
from trainables.learning.evaluation import evaluate
from trainables.seeds import generator


class ImageBatches:
    """Augmented images for the whole model."""

    setup_flops = 0.0
    setup_images = 0
    max_steps: int | None = None
    depends_on_target = False
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
        drop_last: bool = False,
    ) -> None:
        """`cost` is that of training the model, `inference_flops` of what is measured of it.

        `drop_last` leaves out of every epoch the images that fill no batch, of which there must be
        one; otherwise a batch reaches into the next epoch.
        """
        self._recipe = recipe
        self._seed = seed
        self._split = store.splits["train"]
        self._validation = store.splits["validation"]
        images = len(self._split)
        left_over = images % recipe.batch_size if drop_last else 0
        self._epochs = Epochs(images=images, seed=seed, length=images - left_over)
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
