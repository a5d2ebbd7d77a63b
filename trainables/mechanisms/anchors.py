"""Anchors: values of a model that training leaves bit for bit as they were when it began.

A mask is a bool tensor of its parameter's shape, True where the value is free. Masks go by the
parameter's qualified name; a parameter without one is free.
"""

from collections.abc import Collection, Mapping
from copy import deepcopy

import torch
from torch import Tensor, nn

from trainables.mechanisms.masks import Masks, mask_tensors
from trainables.method import Transfer


def anchor_tensors(masks: Masks, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Masks and the values to hold, as `AnchoredTransfer.restore` takes them.

    A checkpoint keeps them in the same way. `values` may have more names than `masks`.
    """
    anchors = {f"anchor:{name}": values[name].detach() for name in masks}
    return mask_tensors(masks) | anchors


class AnchoredTransfer(Transfer):
    """Holds the values that masks do not leave free at their anchors, from the first step to the
    export.

    Everything is free until `restore` brings masks and anchors. From then on held values get no
    gradient, and after every step and in the plain model they are at their anchors, whatever
    momentum, weight decay and averages made of them: `plain_model` and `hold` are exact to the bit.
    """

    def __init__(self, *, frozen: Collection[str] = ()) -> None:
        """`frozen` names parameters held whole, whose gradient is switched off.

        It is not computed and costs nothing. They have no mask, and are no part of what `restore`
        takes, because costs are counted before a checkpoint is restored.
        """
        self._frozen = frozenset(frozen)
        self.masks: dict[str, Tensor] = {}
        """The masks in force."""
        self.anchors: dict[str, Tensor] = {}
        """The values that each masked parameter is held at, of its shape and by its name."""
        self.parameters: dict[str, nn.Parameter] = {}
        """All parameters of the model that is trained."""

    def attach(self, model: nn.Module) -> None:
        self.parameters = dict(model.named_parameters())
        for name in self._frozen:
            self.parameters[name].requires_grad = False

    def after_backward(self, *, step: int, total_steps: int) -> None:
        for name, mask in self.masks.items():
            gradient = self.parameters[name].grad
            if gradient is not None:
                gradient.mul_(mask)

    def after_update(self, *, step: int, total_steps: int) -> None:
        self._hold(self.parameters)

    def hold(self, model: nn.Module) -> None:
        self._hold(dict(model.named_parameters()))

    def plain_model(self, model: nn.Module) -> nn.Module:
        parameters = dict(model.named_parameters())
        if all(torch.equal(parameters[n], self._held(n, parameters[n])) for n in self.masks):
            return model
        held = deepcopy(model)
        self.hold(held)
        return held

    def updated_params(self, model: nn.Module) -> int:
        held = sum(
            mask.numel() - int(mask.count_nonzero())
            for name, mask in self.masks.items()
            if self.parameters[name].requires_grad
        )
        return super().updated_params(model) - held

    def tensors(self) -> dict[str, Tensor]:
        return anchor_tensors(self.masks, self.anchors)

    def restore(self, tensors: Mapping[str, Tensor], state: Mapping[str, object]) -> None:
        for key, mask in tensors.items():
            kind, _, name = key.partition(":")
            if kind == "mask":
                self._anchor(name, mask, tensors[f"anchor:{name}"])

    @torch.no_grad()
    def _anchor(self, name: str, mask: Tensor, values: Tensor) -> None:
        parameter = self.parameters[name]
        self.masks[name] = torch.empty_like(parameter, dtype=torch.bool).copy_(mask)
        self.anchors[name] = torch.empty_like(parameter, requires_grad=False).copy_(values)

    @torch.no_grad()
    def _hold(self, parameters: Mapping[str, nn.Parameter]) -> None:
        for name in self.masks:
            parameters[name].copy_(self._held(name, parameters[name]))

    def _held(self, name: str, values: Tensor) -> Tensor:
        return torch.where(self.masks[name], values, self.anchors[name])
