"""What is measured of a model that a schedule-free optimiser trains."""

from collections.abc import Callable, Iterable
from copy import deepcopy

import torch
from torch import Tensor, nn

from trainables.backbones.layers import trained_batch_norms
from trainables.pruning.repair import reestimate_batch_norm

SETTLING_IMAGES = 256
"""Training images passed forward before each measurement to re-estimate the average's batch norms;
their cost counts."""


class ScheduleFreeAverage:
    """The average that the method is about: what is measured and exported.

    The model holds the points y where gradients are taken; the average x (arXiv 2405.15682) follows
    from y = (1 - β)·z + β·x, z being the optimiser's own steps. The library's `eval()` would write
    x into the model and `train()` y back, rounded: x is made here instead, so that measuring
    changes nothing. Batch-norm statistics are y's, and are re-estimated for x, as the library asks.
    """

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """`model` must have been frozen, moved and put into train mode already."""
        self.model = deepcopy(model).requires_grad_(requires_grad=False).eval()
        """The average, in eval mode, as it was when last settled."""
        self._trained = model
        self._optimizer = optimizer
        self._norms = trained_batch_norms(model)
        self.settling_images = SETTLING_IMAGES if self._norms else 0
        """How many images, at most, `settle` passes forward."""

    def update(self, *, step: int) -> None:
        """Nothing: the optimiser averages."""

    @torch.no_grad()
    def settle(
        self, calibration: Iterable[Tensor], *, hold: Callable[[nn.Module], None] | None = None
    ) -> None:
        """Makes `model` the average as of now, in which `hold` sets what a method holds still.

        `calibration` is normalised training images in batches, at most `settling_images` in all.
        """
        beta, _ = self._optimizer.param_groups[0]["betas"]
        pairs = zip(self.model.parameters(), self._trained.parameters(), strict=True)
        for mine, theirs in pairs:
            mine.copy_(theirs)
            z = self._optimizer.state.get(theirs, {}).get("z")
            if z is not None:  # a parameter that never had a gradient has none
                mine.lerp_(z, 1 - 1 / beta)
        for own, new in zip(self.model.buffers(), self._trained.buffers(), strict=True):
            own.copy_(new)
        if hold is not None:  # z drifts by weight decay where the gradient is zero
            hold(self.model)
        if self._norms:
            reestimate_batch_norm(self.model, calibration, only=self._norms)
