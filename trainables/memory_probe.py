"""The memory of a sweep's recipes, from a few short trials on the device that will run them."""

import functools
from dataclasses import replace
from pathlib import Path

import torch

from search_spaces.recipe import Optimizer, Recipe
from trainables.backbones import build as backbones
from trainables.backbones.build import Backbone
from trainables.backbones.source import BackboneSource
from trainables.costs.flops import count_flops
from trainables.costs.memory import TrialMemory, fit_peak, trace_memory
from trainables.errors import InputError
from trainables.finetune import Finetuning
from trainables.images.store import ImageStore, Split
from trainables.learning.evaluation import EVALUATION_BATCH
from trainables.learning.freezing import freeze_below, train_mode
from trainables.learning.optimizers import STATE_COPIES

TRAINING_BATCHES = (8, 24)
"""Images a step of the trials that probe training, with next to nothing to validate on."""
EVALUATION_IMAGES = (EVALUATION_BATCH // 4, EVALUATION_BATCH)
"""Validation images of the trials that probe evaluation, with the smallest of steps."""
_SMALLEST_BATCH = 2


def dense(recipe: Recipe, *, resolution: int) -> Recipe:
    """Full finetuning like `recipe`, as it takes the most memory but for its batch.

    All layers trained by an optimiser that keeps two values a weight, images at `resolution`. What
    a method saves or needs besides is left out: to know it, the recipe would have to be prepared.
    """
    light = recipe.optimizer is Optimizer.SGD
    return replace(
        recipe,
        method="full",
        settings={},
        trainable_depth=1.0,
        resolution=resolution,
        augmentation=1.0,
        optimizer=Optimizer.ADAMW if light else recipe.optimizer,
    )


def probe_memory(
    recipe: Recipe, *, source: BackboneSource, classes: int, device: torch.device
) -> TrialMemory:
    """The memory of `recipe`'s trials on `device`, measured by four that take two steps each.

    Raises `InputError` where the device keeps no account of its memory.
    """

    def peak(batch_size: int, validation_images: int) -> int:
        trial = probe_trial(
            recipe,
            source=source,
            classes=classes,
            batch_size=batch_size,
            validation_images=validation_images,
            device=device,
        )
        trial.advance()
        measured = trial.measurement
        if measured is None or measured.peak_memory_bytes is None:
            raise InputError(
                f"The peak memory of a trial cannot be measured on {device}, but resources.gpus="
                "auto goes by it; give resources.gpus a number."
            )
        return measured.peak_memory_bytes

    return TrialMemory(
        training=fit_peak(lambda images: peak(images, 1), batches=TRAINING_BATCHES),
        evaluation=fit_peak(
            lambda images: peak(_SMALLEST_BATCH, images), batches=EVALUATION_IMAGES
        ),
    )


def probe_trial(
    recipe: Recipe,
    *,
    source: BackboneSource,
    classes: int,
    batch_size: int,
    validation_images: int,
    device: torch.device,
) -> Finetuning:
    """A trial of `recipe` with another batch size, on blank images, that is over after two steps.

    Two, because the optimiser's state is there from the first on only. They leave compute for the
    forward passes that settle a schedule-free average, which no third step could be made of.
    """
    side = recipe.resolution

    def blank(images: int) -> Split:
        return Split(
            images=torch.zeros(images, 3, side, side, dtype=torch.uint8),
            labels=torch.arange(images) % classes,
        )

    model = backbones.build(source, num_classes=classes)
    cost = count_flops(model, resolution=side)
    flops = batch_size * (2 * cost.train_flops + cost.forward_flops) * (1 + 1e-9)
    return Finetuning(
        recipe=replace(recipe, batch_size=batch_size, target_flops=flops),
        seed=0,
        backbone=Backbone(source=source, weights=None),
        store=ImageStore(
            class_names=tuple(map(str, range(classes))),
            resolution=side,
            splits={"train": blank(batch_size), "validation": blank(validation_images)},
            folder=Path("blank"),
        ),
        levels=(flops,),
        mirror=True,
        device=device,
    )


class RecipeMemory:
    """Predicts what recipes on one backbone need, from what its dense recipe was measured to."""

    def __init__(
        self, recipe: Recipe, *, measured: TrialMemory, source: BackboneSource, classes: int
    ) -> None:
        """`measured` is the memory of `recipe`."""
        self._traced = functools.cache(functools.partial(_traced, source, classes))
        self._reference = self._trace(recipe)
        self._measured = measured

    def peak_bytes(self, recipe: Recipe) -> int:
        """Bytes that a trial of `recipe` needs at once, at most; an upper bound where it prunes.

        Raises `InputError` where the backbone cannot be traced at the recipe's resolution.
        """
        memory = self._trace(recipe).calibrated(traced=self._reference, measured=self._measured)
        return memory.peak_bytes(batch_size=recipe.batch_size, evaluation_batch=EVALUATION_BATCH)

    def _trace(self, recipe: Recipe) -> TrialMemory:
        return self._traced(
            recipe.resolution, recipe.trainable_depth, STATE_COPIES[recipe.optimizer]
        )


def _traced(
    source: BackboneSource,
    classes: int,
    resolution: int,
    trainable_depth: float,
    optimizer_copies: int,
) -> TrialMemory:
    model = backbones.build(source, num_classes=classes)
    freeze_below(model, trainable_depth=trainable_depth)
    train_mode(model)
    return trace_memory(model, resolution=resolution, optimizer_copies=optimizer_copies)
