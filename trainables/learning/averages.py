"""Averages of a model over its training, which are what is measured and exported of it."""

from collections.abc import Callable, Iterable
from copy import deepcopy

import torch
from torch import Tensor, nn

from trainables.learning.batch_norm import reestimate_batch_norm, trained_batch_norms
from trainables.learning.freezing import is_frozen

AVERAGE_ORDER = 8
"""Order of the polynomial-decay average: about the last 1/(order + 1) of the steps count."""
SETTLING_IMAGES = 256
"""Training images passed forward before each measurement to re-estimate the average's batch norms;
their cost counts."""


class RunningAverage:
    """A copy of a model that follows it: what is measured and exported.

    Polynomial-decay averaging (Shamir & Zhang 2013) of weights and statistics: with order g,
    a_t = a_{t-1} + (g + 1) / (t + g) * (w_t - a_{t-1}). It needs no horizon, so that the early
    rungs of a long schedule are as honest as the last.
    """

    def __init__(self, model: nn.Module) -> None:
        """`model` must have been frozen and moved already: what is frozen is not followed."""
        self.model = deepcopy(model).requires_grad_(requires_grad=False).eval()
        """The average, in eval mode."""
        pairs: list[tuple[Tensor, Tensor]] = [
            (mine, theirs.detach())
            for mine, theirs in zip(self.model.parameters(), model.parameters(), strict=True)
            if theirs.requires_grad
        ]
        for mine, theirs in zip(self.model.modules(), model.modules(), strict=True):
            if not is_frozen(theirs):
                pairs += zip(
                    mine.buffers(recurse=False), theirs.buffers(recurse=False), strict=True
                )
        self._averaged = [pair for pair in pairs if pair[0].is_floating_point()]
        self._copied = [pair for pair in pairs if not pair[0].is_floating_point()]
        self.settling_images = 0
        """Number of images that `settle` passes forward."""

    def settle(
        self, calibration: Iterable[Tensor], *, hold: Callable[[nn.Module], None] | None = None
    ) -> None:
        """Does nothing: the average is ready to be measured at any time."""

    @torch.no_grad()
    def update(self, *, step: int) -> None:
        """Follows the model after its step number `step`, from 1."""
        share = (AVERAGE_ORDER + 1) / (step + AVERAGE_ORDER)
        mine, theirs = zip(*self._averaged, strict=True)
        torch._foreach_lerp_(mine, theirs, share)
        for own, new in self._copied:
            own.copy_(new)


class ScheduleFreeAverage:
    """The average that a schedule-free optimiser keeps: what is measured and exported.

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
        """Number of images, at most, that `settle` passes forward."""

    def update(self, *, step: int) -> None:
        """Does nothing: the optimiser averages."""

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
