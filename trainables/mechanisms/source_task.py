"""The source task: what the backbone was trained on, for methods that train it there once more."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn


@dataclass(frozen=True, kw_only=True)
class SourceTask:
    """A backbone on the task it was trained on, opened for one trial."""

    model: nn.Module
    """The backbone with its pretrained weights and a classifier of the source's classes, on the
    trial's device; the classifier is pretrained too where the weights have one of that size."""
    batch: Callable[[int, int], tuple[Tensor, Tensor]]
    """Normalised training images [B, 3, R, R], without augmentation, and labels [B] of a step,
    from 0, given B."""
    train_images: int
    """Images in its training split."""
