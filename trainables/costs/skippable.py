"""FLOPs that hardware which skips zeros would save; dense hardware executes them all."""

from collections.abc import Mapping
from functools import cached_property

from torch import nn

from trainables.backbones.layers import WEIGHTED
from trainables.costs.flops import StepCost, layer_flops


class SkippableFlops:
    """Counts the FLOPs of one trial that meet a weight which is zero.

    They are theoretical: reported next to the FLOPs that are executed and never taken from them.
    The gradient of a weight that is held at zero counts as skipped, too.
    """

    def __init__(self, model: nn.Module, *, resolution: int) -> None:
        """`model` is attached to its transfer and frozen as it will be trained."""
        self._model = model
        self._resolution = resolution
        self.train_flops = 0.0
        """Training FLOPs so far that could have been skipped."""

    def forward(self, images: int, *, shares: Mapping[str, float]) -> None:
        """Counts `images` that went forward; `shares` of the named weights were held at zero."""
        for name, share in shares.items():
            if cost := self._layers.get(name):  # None where no image passes the layer
                self.train_flops += images * share * cost.forward_flops

    def step(self, images: int, *, shares: Mapping[str, float]) -> None:
        """Counts a step that trained on `images`."""
        for name, share in shares.items():
            if cost := self._layers.get(name):  # None where no image passes the layer
                self.train_flops += images * share * cost.train_flops

    def inference_flops(self, measured: nn.Module) -> float:
        """FLOPs of one image's forward pass that meet a zero in the weights of `measured`."""
        total = 0.0
        for name, layer in measured.named_modules():
            if isinstance(layer, WEIGHTED):
                size = layer.weight.numel()
                zeros = size - int(layer.weight.count_nonzero())
                if zeros and (cost := self._layers.get(f"{name}.weight")):
                    total += zeros / size * cost.forward_flops
        return total

    @cached_property
    def _layers(self) -> Mapping[str, StepCost]:
        return layer_flops(self._model, resolution=self._resolution)
