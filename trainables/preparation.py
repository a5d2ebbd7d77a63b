"""Preparation: the recipe's model, made and changed as its method says before any training step."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from search_spaces.recipe import Recipe
from trainables.backbones import build as backbones
from trainables.backbones.build import Backbone
from trainables.backbones.contract import check_contract
from trainables.backbones.layers import classifier_name
from trainables.batches.epochs import Epochs
from trainables.costs.flops import count_flops
from trainables.errors import InfeasibleError, InputError
from trainables.images.augment import model_inputs
from trainables.images.store import ImageStore
from trainables.learning.evaluation import EVALUATION_BATCH
from trainables.method import MethodContext, Prepared, SourceTask, Transfer, load_method
from trainables.seeds import derive_seed, generator

GPU_WIDTH_MULTIPLE = 8
"""Channels that tensor cores take at a time; CPUs lose nothing by other widths."""
SALIENCY_BATCH = 16
"""Images whose gradients a method may ask for at a time: the smallest batch that is trained."""


class Preparation:
    """One recipe's model on one task, and the images that its method may look at.

    Raises `InfeasibleError` when the images shrink to nothing on their way through the model.
    """

    def __init__(
        self,
        *,
        recipe: Recipe,
        seed: int,
        backbone: Backbone,
        store: ImageStore,
        source_task: Callable[[], ImageStore] | None,
        device: torch.device,
    ) -> None:
        self._recipe = recipe
        self._seed = seed
        self._backbone = backbone
        self._train = store.splits["train"]
        self._classes = len(store.class_names)
        self._source_task = source_task
        self._device = device
        self._method = load_method(recipe.method)
        self.model = self._pretrained(classes=self._classes)
        """The model on the device; `run` or `reshape` changes it."""
        self.normalisation = backbones.normalisation(backbone.source, self.model)
        """Channel means and deviations of its inputs, 0-1."""
        try:
            check_contract(self.model, classes=self._classes, resolution=recipe.resolution)
            count_flops(self.model, resolution=recipe.resolution)
        except InputError as error:  # mostly an image that shrinks to nothing on its way
            raise InfeasibleError(str(error)) from error

    def run(self) -> Prepared:
        """Prepares the model; raises `InfeasibleError` when it cannot be as the recipe says."""
        return self._method.prepare(self.model, self._context())

    def reshape(self, structure: Mapping[str, Any]) -> None:
        """Gives the model the shapes that `run` left before the trial was saved."""
        self._method.reshape(self.model, structure, self._recipe)

    def transfer(self, structure: Mapping[str, Any]) -> Transfer:
        """The method's transfer for a model that was prepared with this structure."""
        return self._method.transfer(self._recipe, structure)

    def inputs(self, images: Tensor) -> Tensor:
        """Normalised input [B, 3, r, r] of images [B, 3, R, R], 0-255, on the device."""
        mean, std = self.normalisation
        return model_inputs(
            images.to(self._device, non_blocking=True),
            resolution=self._recipe.resolution,
            mean=mean,
            std=std,
        )

    def calibration(self, images: int) -> Iterator[Tensor]:
        """Yields training images as `MethodContext.calibration` promises."""
        for indices in self._calibration_order(images).split(EVALUATION_BATCH):
            if len(indices) > 1:
                yield self.inputs(self._train.images[indices])

    def _labelled(self, images: int) -> Iterator[tuple[Tensor, Tensor]]:
        for indices in self._calibration_order(images).split(SALIENCY_BATCH):
            labels = self._train.labels[indices].to(self._device)
            yield self.inputs(self._train.images[indices]), labels

    def _calibration_order(self, images: int) -> Tensor:
        """Indices that are the same for every seed: equal prunings share features."""
        shuffled = generator("calibration")
        return torch.randperm(len(self._train), generator=shuffled)[:images]

    def _fresh(self, *, classes: int) -> nn.Module:
        torch.manual_seed(derive_seed(self._seed, "head"))
        return backbones.build(self._backbone.source, num_classes=classes).to(self._device)

    def _pretrained(self, *, classes: int) -> nn.Module:
        model = self._fresh(classes=classes)
        if self._backbone.weights is not None:
            backbones.load_into(model, self._backbone.weights, source=self._backbone.source)
        return model

    def _open_source_task(self, open_images: Callable[[], ImageStore]) -> SourceTask:
        store = open_images()
        train = store.splits["train"]
        model = self._pretrained(classes=len(store.class_names))
        if self._backbone.weights is not None:
            backbones.load_head(model, self._backbone.weights)
        epochs = Epochs(images=len(train), seed=derive_seed(self._seed, "source"))

        def batch(step: int, size: int) -> tuple[Tensor, Tensor]:
            indices = epochs.batch(step, size=size)
            return self.inputs(train.images[indices]), train.labels[indices].to(self._device)

        return SourceTask(model=model, batch=batch, train_images=len(train))

    def _context(self) -> MethodContext:
        resolution, source_task = self._recipe.resolution, self._source_task
        return MethodContext(
            recipe=self._recipe,
            head=classifier_name(self.model),
            seed=derive_seed(self._seed, "method"),
            calibration=self.calibration,
            labelled=self._labelled,
            forward_flops=lambda: count_flops(self.model, resolution=resolution).forward_flops,
            train_flops=lambda: count_flops(self.model, resolution=resolution).train_flops,
            width_multiple=GPU_WIDTH_MULTIPLE if self._device.type == "cuda" else 1,
            fresh=lambda: self._fresh(classes=self._classes),
            source_task=source_task and (lambda: self._open_source_task(source_task)),
        )
