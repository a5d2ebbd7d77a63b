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

    `inputs` turns stored images [B, 3, R, R] into the model's input.
    """
    wrong, loss = 0.0, 0.0
    for images, labels in zip(
        split.images.split(EVALUATION_BATCH), split.labels.split(EVALUATION_BATCH), strict=True
    ):
        batch = inputs(images)
        targets = labels.to(batch.device)
        logits = model(batch).float()
        wrong += (logits.argmax(dim=1) != targets).sum().item()
        loss += F.cross_entropy(logits, targets, reduction="sum").item()
    return wrong / len(split), loss / len(split)
