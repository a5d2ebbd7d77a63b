"""The device that trains, its number format and memory layout, which are no recipe's business."""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn


def training_device() -> torch.device:
    """Returns this process's GPU where it has one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@dataclass(frozen=True, kw_only=True)
class Precision:
    """Number format and layout of a training step; weights, optimiser and loss are float32.

    Validation, calibration and exported models are float32 throughout, so that what is measured is
    what is exported.
    """

    autocast: torch.dtype | None = None
    """Format of the convolutions and matrix products of a training step; None for float32."""
    memory_format: torch.memory_format = torch.contiguous_format
    """Layout of the weights and images with four dimensions."""

    @classmethod
    def of(cls, device: torch.device) -> "Precision":
        """The precision that suits the device: channels last, and bfloat16 on a GPU that has it.

        On a CPU channels last trains most models faster, the pruned ones above all
        (`tests/benchmarks/memory_format.py`); bfloat16 is emulated on many.
        """
        bfloat16 = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
        return cls(autocast=torch.bfloat16 if bfloat16 else None, memory_format=torch.channels_last)

    def lay_out(self, model: nn.Module) -> nn.Module:
        """The model, its weights laid out in place."""
        if self.memory_format is torch.contiguous_format:
            return model  # conversion would change the strides of 1 × 1 weights for nothing
        return model.to(memory_format=self.memory_format)

    def images(self, images: Tensor) -> Tensor:
        """A model's input, laid out where it has four dimensions, [B, C, H, W]."""
        if images.ndim != 4:
            return images
        return images.contiguous(memory_format=self.memory_format)

    def step(self, device: torch.device) -> AbstractContextManager[object]:
        """The context of a training step's forward pass on `device`."""
        if self.autocast is None:
            return nullcontext()
        return torch.autocast(device.type, dtype=self.autocast)
