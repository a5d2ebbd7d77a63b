"""Evaluation: how a model does on a split."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainables.images.store import Split
from trainables.learning.parts_that_fit import in_parts_that_fit

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

    def score(rows: slice) -> tuple[float, float]:
        pixels = inputs(split.images[rows])
        targets = split.labels[rows].to(pixels.device)
        logits = model(pixels).float()
        wrong = (logits.argmax(dim=1) != targets).sum().item()
        return wrong, F.cross_entropy(logits, targets, reduction="sum").item()

    scores = list(in_parts_that_fit(score, len(split), part=EVALUATION_BATCH))
    return sum(wrong for wrong, _ in scores) / len(split), sum(s for _, s in scores) / len(split)
