"""Masks of the values that training may move, and a transfer that holds the others at zero.

A mask is a bool tensor of its weight's shape, True where the value is free. Masks go by the
weight's qualified name.
"""

from collections.abc import Iterable, Mapping
from copy import deepcopy

import torch
from torch import Tensor, nn

from trainables.backbones.layers import backbone_weights
from trainables.method import Transfer

Masks = Mapping[str, Tensor]


def apply_masks(model: nn.Module, masks: Masks) -> None:
    """Sets every value to zero that its weight's mask does not leave free."""
    with torch.no_grad():
        for name, mask in masks.items():
            weight = model.get_parameter(name)
            weight.masked_fill_(~mask.to(weight.device), 0.0)


def mask_tensors(masks: Masks) -> dict[str, Tensor]:
    """The masks as `MaskedTransfer.restore` takes them, and as a checkpoint keeps them."""
    return {f"mask:{name}": mask for name, mask in masks.items()}


class MaskedTransfer(Transfer):
    """Holds the values that masks do not leave free at zero, from the first step to the export.

    Everything is free until `restore` or `set_masks` brings masks. From then on held values get no
    gradient, are zero after every step, and are zero in the plain model whatever the average made
    of them. Derive from it to move the masks while training goes on, and override `masks_of` where
    the plain model is sparser than the trained one.
    """

    def __init__(self) -> None:
        self.masks: dict[str, Tensor] = {}
        """The masks in force; `set_masks` replaces them."""
        self.weights: dict[str, nn.Parameter] = {}
        """The masked weights of the model that is trained."""

    def attach(self, model: nn.Module) -> None:
        self.weights = backbone_weights(model)
        self.set_masks({n: torch.ones_like(w, dtype=torch.bool) for n, w in self.weights.items()})

    def set_masks(self, masks: Masks) -> None:
        """Applies these masks and holds to them from now on; weights they leave out keep theirs."""
        for name, mask in masks.items():
            # laid out as the weight is, or every product of the two would be slow
            weight = self.weights[name]
            self.masks[name] = torch.empty_like(weight, dtype=torch.bool).copy_(mask)
        self._shares = {
            name: 1 - int(mask.count_nonzero()) / mask.numel() for name, mask in self.masks.items()
        }
        self._hold(self.weights)

    def after_backward(self, *, step: int, total_steps: int) -> None:
        for name, weight in self.weights.items():
            if weight.grad is not None:
                weight.grad.mul_(self.masks[name])

    def after_update(self, *, step: int, total_steps: int) -> None:
        # frozen weights stay as `set_masks` left them: a head's step must not pass over all weights
        self._hold(name for name, weight in self.weights.items() if weight.requires_grad)

    def masks_of(self, average: nn.Module) -> Masks:
        """The masks of the plain model that is made from `average`."""
        return self.masks

    def hold(self, model: nn.Module) -> None:
        apply_masks(model, self.masks_of(model))

    def plain_model(self, model: nn.Module) -> nn.Module:
        weights, masks = backbone_weights(model), self.masks_of(model)
        if all((weights[name][~mask] == 0).all() for name, mask in masks.items()):
            return model
        masked = deepcopy(model)
        apply_masks(masked, masks)
        return masked

    def updated_params(self, model: nn.Module) -> int:
        held = sum(
            mask.numel() - int(mask.count_nonzero())
            for name, mask in self.masks.items()
            if self.weights[name].requires_grad
        )
        return super().updated_params(model) - held

    def zero_shares(self) -> Mapping[str, float]:
        return self._shares

    def tensors(self) -> dict[str, Tensor]:
        return mask_tensors(self.masks)

    def restore(self, tensors: Mapping[str, Tensor], state: Mapping[str, object]) -> None:
        self.set_masks({name.removeprefix("mask:"): mask for name, mask in tensors.items()})

    @torch.no_grad()
    def _hold(self, names: Iterable[str]) -> None:
        for name in names:
            self.weights[name].mul_(self.masks[name])
