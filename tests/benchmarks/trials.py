"""Trials on images made of noise, for benchmarks of time: what they learn does not matter."""

from dataclasses import dataclass
from pathlib import Path

import torch

from search_spaces.recipe import Recipe
from trainables.backbones.build import Backbone
from trainables.backbones.source import BackboneSource
from trainables.finetune import Finetuning
from trainables.images.store import ImageStore, Split

CLASSES = 10


def noise_store(*, resolution: int, train_images: int) -> ImageStore:
    """Images [N, 3, R, R] of uniform noise, held in memory; a single one to validate on."""
    draws = torch.Generator().manual_seed(0)

    def split(images: int) -> Split:
        shape = (images, 3, resolution, resolution)
        return Split(
            images=torch.randint(0, 256, shape, dtype=torch.uint8, generator=draws),
            labels=torch.randint(0, CLASSES, (images,), generator=draws),
        )

    return ImageStore(
        class_names=tuple(map(str, range(CLASSES))),
        resolution=resolution,
        splits={"train": split(train_images), "validation": split(1)},
        folder=Path("noise"),
    )


def noise_recipe(
    store: ImageStore,
    *,
    batch_size: int,
    target_flops: float,
    keep: float = 1.0,
    width_rule: str = "inner",
) -> Recipe:
    """Augmentation of medium strength, and all trained that is left."""
    return Recipe(
        method="filter_pruning",
        settings={
            "pruning_ratio": 1 - keep,
            "criterion": "l1",
            "width_rule": width_rule,
            "scope": "layer",
            "batch_norm_repair": False,
            "ridge_repair": False,
        },
        learning_rate=1e-4,
        weight_decay=1e-4,
        batch_size=batch_size,
        label_smoothing=0.1,
        layer_decay=1.0,
        trainable_depth=1.0,
        resolution=store.resolution,
        augmentation=0.5,
        target_flops=target_flops,
    )


def noise_trial(
    model: str,
    *,
    store: ImageStore,
    batch_size: int,
    device: torch.device,
    levels: tuple[float, ...],
    keep: float = 1.0,
    width_rule: str = "inner",
) -> Finetuning:
    """Finetuning of all that is left of `model` when the share `keep` of its filters stays."""
    return Finetuning(
        recipe=noise_recipe(
            store,
            batch_size=batch_size,
            target_flops=levels[-1],
            keep=keep,
            width_rule=width_rule,
        ),
        seed=0,
        backbone=Backbone(source=BackboneSource(model=model), weights=None),
        store=store,
        levels=levels,
        mirror=True,
        device=device,
    )


@dataclass(frozen=True, kw_only=True)
class Pace:
    """The cost of training steps, for each image."""

    seconds: float
    flops: float


def next_pace(trial: Finetuning) -> Pace:
    """Trains to the next rung, without the look at the validation split.

    That of the first rung counts the set-up in and is to be thrown away.
    """
    before = trial.measurement
    trial.advance()
    after = trial.measurement
    assert after is not None  # a finite loss, whatever the noise
    images, seconds, flops = after.images_seen, after.train_seconds, after.train_flops
    if before is not None:
        images -= before.images_seen
        seconds -= before.train_seconds
        flops -= before.train_flops
    return Pace(seconds=seconds / images, flops=flops / images)
