"""Deltas on frozen pretrained weights: gated, within a budget, and merged in the end.

A weight is w₀ + gate · δ (`torch.nn.utils.parametrize`). Weight decay therefore pulls δ to zero and
the weight to its pretrained value, and not to zero (ours).
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from copy import deepcopy
from math import floor, inf
from typing import Any

import torch
from torch import Tensor, nn

from search_spaces.recipe import Recipe
from trainables.backbones.layers import backbone_weights, below_head, norm_parameters
from trainables.errors import InputError
from trainables.learning.freezing import train_norms_and_head
from trainables.mechanisms.reparametrization import merge, reparametrize
from trainables.method import Conditions, Transfer
from trainables.settings import check_depth


class GatedDelta(nn.Module):
    """Makes a weight of the pretrained one: w₀ + gate · δ, δ = 0 at first, one gate for each unit.

    A unit is the whole weight, or a filter: a slice of the weight's first dimension. Where a gate
    is closed the weight has w₀'s values exactly, where it is open those of plain finetuning. A
    score's gradient is that of its gate, open or closed, as if the gate were the score (straight
    through); its value has no part in the weight.
    """

    def __init__(self, weight: Tensor, *, per_filter: bool, score: float) -> None:
        """`weight` [out, ...] is the pretrained one; all scores start at `score`."""
        nn.Module.__init__(self)
        shape = (len(weight) if per_filter else 1, *[1] * (weight.ndim - 1))
        self.delta = nn.Parameter(torch.zeros_like(weight))
        self.score = nn.Parameter(torch.full(shape, score, device=weight.device))
        self.open: Tensor
        self.register_buffer("open", torch.ones(shape, dtype=torch.bool, device=weight.device))

    @property
    def units(self) -> int:
        """The number of gates."""
        return self.open.numel()

    @property
    def unit_size(self) -> int:
        """Values of the weight behind each gate."""
        return self.delta.numel() // self.units

    def forward(self, pretrained: Tensor) -> Tensor:
        gate = self.open + (self.score - self.score.detach())
        return pretrained + gate * self.delta


class GatedTransfer(Transfer, ABC):
    """Trains δ of gated units, all norms and the head; every plain model keeps to a budget.

    A method that derives from it says by `scores` which units matter most; a plain model has those
    with the largest scores that fit the budget. The method opens gates as it likes until it has
    `settled`.
    """

    def __init__(self, *, budget: float, per_filter: bool, score: float) -> None:
        """`budget` is the share (0-1) of the backbone's parameters that may differ at the end."""
        self._budget = budget
        self._per_filter = per_filter
        self._score = score
        self.settled = False
        """Whether the gates stay as they are until the end."""

    def attach(self, model: nn.Module) -> None:
        self.room = delta_room(model, budget=self._budget)
        """The number of values of the weights that may differ at the end."""
        train_norms_and_head(model)
        reparametrize(
            model, lambda w: GatedDelta(w, per_filter=self._per_filter, score=self._score)
        )
        self.deltas = gated_deltas(model)
        """The deltas of all weights, in the model's order."""
        sizes = [torch.full((delta.units,), delta.unit_size) for delta in self.deltas]
        self.unit_sizes = torch.cat(sizes)
        """Values behind each gate [units], on the CPU."""

    @abstractmethod
    def scores(self) -> Tensor:
        """Scores [units] of how much each unit matters; minus infinity keeps one closed."""

    def choose(self) -> Tensor:
        """Mask [units], on the CPU, of the units that a plain model has."""
        if self.settled:
            return torch.cat([delta.open.flatten() for delta in self.deltas]).cpu()
        return largest_fitting(self.scores(), sizes=self.unit_sizes, room=self.room)

    def settle(self) -> None:
        """Opens for good the gates of the units that a plain model has."""
        open_gates(self.deltas, self.choose())
        self.settled = True

    def after_backward(self, *, step: int, total_steps: int) -> None:
        if self.settled:  # a gradient without effect must not count when gradients are clipped
            for delta in self.deltas:
                delta.score.grad = None

    def plain_model(self, model: nn.Module) -> nn.Module:
        plain = deepcopy(model)
        open_gates(gated_deltas(plain), self.choose())
        merge(plain)
        return plain

    def updated_params(self, model: nn.Module) -> int:
        gated = sum(delta.delta.numel() + delta.units for delta in self.deltas)
        return super().updated_params(model) - gated + int(self.unit_sizes[self.choose()].sum())

    def state(self) -> dict[str, Any]:
        return {"settled": self.settled}

    def restore(self, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
        self.settled = state["settled"]


def check_budget(
    recipe: Recipe, conditions: Conditions, *, budget: float, per_filter: bool
) -> None:
    """Raises `InputError` where no unit fits the budget next to the norms, which always train."""
    check_depth(recipe, low=1.0, high=1.0, instead="the budget alone says where weights are moved")
    weights = backbone_weights(conditions.model)
    if not weights:
        raise InputError(
            f"{recipe.method} moves weights of convolutions and linear layers below the head, and "
            f"{type(conditions.model).__name__} has none; choose another method."
        )
    sizes = (weight.numel() // (len(weight) if per_filter else 1) for weight in weights.values())
    smallest = min(sizes)
    room = delta_room(conditions.model, budget=budget)
    if room < smallest:
        total = _backbone_size(conditions.model)
        least = budget + (smallest - room) / total
        raise InputError(
            f"budget={budget:g} of {total} backbone parameters must hold the norms and the "
            f"smallest {'filter' if per_filter else 'layer'} of {smallest} values; choose "
            f"{least + 5e-4:.3f} or more."
        )


def delta_room(model: nn.Module, *, budget: float) -> int:
    """Counts the values of the weights that may differ within `budget`, once all norms may.

    The budget is a share of all parameters below the head of a model without deltas.
    """
    norms = norm_parameters(model)
    sizes = (p.numel() for name, p in model.named_parameters() if name in norms)
    return floor(budget * _backbone_size(model)) - sum(sizes)


def largest_fitting(scores: Tensor, *, sizes: Tensor, room: int) -> Tensor:
    """Mask [N], on the CPU, of the units with the largest `scores` whose `sizes` fit into `room`.

    Takes units from the largest score down, the first of equals first, each that still fits, and
    none with a score of minus infinity.
    """
    order = scores.detach().cpu().argsort(descending=True, stable=True).tolist()
    values, spaces = scores.tolist(), sizes.tolist()
    chosen = [False] * len(values)
    for index in order:
        if spaces[index] <= room and values[index] > -inf:
            chosen[index] = True
            room -= spaces[index]
    return torch.tensor(chosen)


def gated_deltas(model: nn.Module) -> list[GatedDelta]:
    """The model's gated deltas, in its order."""
    return [module for module in model.modules() if isinstance(module, GatedDelta)]


def open_gates(deltas: list[GatedDelta], chosen: Tensor) -> None:
    """Opens the gates that are True in `chosen` [units] of all deltas, and closes the others."""
    for delta, part in zip(deltas, chosen.split([d.units for d in deltas]), strict=True):
        delta.open.copy_(part.view_as(delta.open))


def _backbone_size(model: nn.Module) -> int:
    return sum(p.numel() for p in below_head(model).values())
