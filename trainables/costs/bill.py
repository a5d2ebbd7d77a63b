"""The bill of one trial: what it has spent so far, and what a measurement says of it."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import nn

from trainables.costs.skippable import SkippableFlops
from trainables.measurement import Measurement
from trainables.rungs import Stop


@dataclass(frozen=True, kw_only=True)
class Prices:
    """FLOPs of everything that a trial does, known before its first step."""

    inference_flops: float
    """One image's forward pass through the model that is measured."""
    preparation_flops: float
    """The method's work before training."""
    setup_flops: float
    """Making the batches ready, as if the trial ran alone."""
    step_flops: float
    """A training step, with what the method does in it."""
    settling_flops: float
    """Making the average ready to be measured."""
    eval_setup_flops: float
    """Work before the first look at the validation split."""
    eval_flops: float
    """Each look at it."""

    def spent_flops(self, steps: int) -> float:
        """Sums up a run that has taken so many steps and has not settled its average."""
        return self.preparation_flops + self.setup_flops + steps * self.step_flops


class Bill:
    """Adds up what one trial spends; the training loop tells it what has happened."""

    def __init__(self, prices: Prices, *, skippable: SkippableFlops, device: torch.device) -> None:
        self.prices = prices
        self.unbilled_flops = 0.0
        """Training FLOPs executed since the last measurement, or by a trial ending without one."""
        self._skippable = skippable
        self._device = device
        self._looks = 0  # at the validation split
        self.seconds = 0.0
        """Wall time of preparation and training so far."""

    @property
    def skippable_flops(self) -> float:
        """Training FLOPs so far that hardware which skips zeros could have skipped."""
        return self._skippable.train_flops

    def prepared(self) -> None:
        """Adds the method's preparation, which a resumed trial does not execute again."""
        self.unbilled_flops += self.prices.preparation_flops

    def opened(self, executed_flops: float, *, images: int, shares: Mapping[str, float]) -> None:
        """Adds what was executed to make the batches ready, with `images` passed forward.

        `shares` of the named weights are held at zero, here and in `stepped`.
        """
        self.unbilled_flops += executed_flops
        self._skippable.forward(images, shares=shares)

    def stepped(self, *, images: int, shares: Mapping[str, float]) -> None:
        """Adds a training step that passed `images` through the whole model."""
        self.unbilled_flops += self.prices.step_flops
        self._skippable.step(images, shares=shares)

    def settled(self) -> None:
        """Adds what made the average ready to be measured."""
        self.unbilled_flops += self.prices.settling_flops

    def worked(self, seconds: float) -> None:
        """Adds wall time of preparation and training."""
        self.seconds += seconds

    def measured(
        self,
        model: nn.Module,
        *,
        stop: Stop,
        images_seen: int,
        updated_params: int,
        error: float,
        loss: float,
        trunk_steps: int,
    ) -> Measurement:
        """The measurement at `stop` of `model`, which has had one more look at validation.

        What was unbilled is billed by it. A run towards more compute can go on from after
        `trunk_steps`; 0 where it cannot.
        """
        prices = self.prices
        self._looks += 1
        executed, self.unbilled_flops = self.unbilled_flops, 0.0
        return Measurement(
            rung=stop.rung,
            train_flops=stop.train_flops,
            executed_flops=executed,
            eval_flops=prices.eval_setup_flops + self._looks * prices.eval_flops,
            inference_flops=prices.inference_flops,
            params=sum(p.numel() for p in model.parameters()),
            updated_params=updated_params,
            nonzero_params=sum(int(p.count_nonzero()) for p in model.parameters()),
            sparse_train_flops=stop.train_flops - self._skippable.train_flops,
            sparse_inference_flops=prices.inference_flops - self._skippable.inference_flops(model),
            val_error=error,
            val_loss=loss,
            train_seconds=self.seconds,
            images_seen=images_seen,
            peak_memory_bytes=_peak_memory(self._device),
            trunk_flops=prices.spent_flops(trunk_steps) if trunk_steps else 0.0,
        )

    def resume(self, *, looks: int, seconds: float, skippable_flops: float) -> None:
        """Goes on from a bill with these sums, of which nothing is unbilled."""
        self._looks = looks
        self.seconds = seconds
        self._skippable.train_flops = skippable_flops


def reset_peak_memory(device: torch.device) -> None:
    """Forgets what an earlier trial of this process took of a GPU."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def _peak_memory(device: torch.device) -> int | None:
    """Bytes at most allocated since `reset_peak_memory`; None where no account is kept."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None
