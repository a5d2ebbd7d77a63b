"""Batch-norm repair: statistics that fit again what a method changed in the model, and its bill."""

from torch import nn

from trainables.learning.batch_norm import reestimate_batch_norm
from trainables.method import MethodContext

CALIBRATION_IMAGES = 256
"""Training images passed forward by a repair; their cost counts."""


def repair_batch_norms(model: nn.Module, context: MethodContext) -> float:
    """Re-estimates the statistics of all batch norms and returns the FLOPs that it cost.

    A model without batch norms costs nothing.
    """
    images = reestimate_batch_norm(model, context.calibration(CALIBRATION_IMAGES))
    return images * context.forward_flops() if images else 0.0
