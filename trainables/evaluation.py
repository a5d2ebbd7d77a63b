"""Evaluation: how a model does on a split."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainables.images.store import Split

EVALUATION_BATCH = 256
"""Images a forward pass of validation, test and calibration; bounds memory, changes no result."""


@torch.inference_mode()
def evaluate(
    model: nn.Module, split: Split, inputs: Callable[[Tensor], Tensor]
) -> tuple[float, float]:
    """Error (0-1) and mean cross-entropy (nats) of `model` on all images of `split`.

    `inputs` turns stored images [B, 3, R, R] into the model's input. Batches that do not fit into
    memory are halved until they do.
    """
    batch = EVALUATION_BATCH
    while True:
        try:
            return _evaluate(model, split, inputs, batch=batch)
        except torch.OutOfMemoryError:
            if batch == 1:
                raise
        batch //= 2


def _evaluate(
    model: nn.Module, split: Split, inputs: Callable[[Tensor], Tensor], *, batch: int
) -> tuple[float, float]:
    wrong, loss = 0.0, 0.0
    for images, labels in zip(split.images.split(batch), split.labels.split(batch), strict=True):
        pixels = inputs(images)
        targets = labels.to(pixels.device)
        logits = model(pixels).float()
        wrong += (logits.argmax(dim=1) != targets).sum().item()
        loss += F.cross_entropy(logits, targets, reduction="sum").item()
    return wrong / len(split), loss / len(split)
