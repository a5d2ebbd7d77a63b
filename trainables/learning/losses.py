"""The training loss: cross-entropy, smoothed, of mixed targets, with classes weighted."""

import torch
import torch.nn.functional as F
from torch import Tensor

from trainables.learning.mixing import Targets


def class_weights(labels: Tensor, *, classes: int, exponent: float) -> Tensor | None:
    """Weight of an image of each class, float32 [classes]; None where all weigh the same.

    A class with n images weighs n^-exponent, scaled so that the mean over the images of `labels`
    [N] is 1, which leaves the learning rate its meaning. A class without images weighs 0.
    """
    if exponent == 0:
        return None
    counts = torch.bincount(labels, minlength=classes).double()
    weights = torch.where(counts > 0, counts.clamp(min=1) ** -exponent, 0.0)
    return (weights * len(labels) / (weights * counts).sum()).float()


def training_loss(
    logits: Tensor, targets: Targets, *, label_smoothing: float, weights: Tensor | None
) -> Tensor:
    """Mean over the images of `logits` [B, classes], float32.

    An image of two classes counts as a share of one of each. Weighted images are summed and divided
    by their number, not by their weights' sum: a batch's loss is the mean of its parts' losses.
    """
    logits = logits.float()
    loss = _mean(logits, targets.labels, label_smoothing, weights)
    if targets.partners is None:
        return loss
    other = _mean(logits, targets.partners, label_smoothing, weights)
    return targets.share * loss + (1 - targets.share) * other


def _mean(logits: Tensor, labels: Tensor, label_smoothing: float, weights: Tensor | None) -> Tensor:
    if weights is None:
        return F.cross_entropy(logits, labels, label_smoothing=label_smoothing)
    each = F.cross_entropy(logits, labels, label_smoothing=label_smoothing, reduction="none")
    return (weights[labels] * each).mean()
