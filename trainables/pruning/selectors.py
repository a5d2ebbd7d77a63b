"""Selectors: how much each channel of a group is worth, from the filters that make it.

Every selector has the same shape, `(filters, width, generator) -> scores [width]`; to add one, add
a function and its line in `SELECTORS`. A channel that several layers make, as in a residual stream,
is worth the sum over their filters.
"""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from trainables.pruning.groups import ChannelGroup, Side, TransposedConvolution
from trainables.pruning.plan import Criterion

Filters = tuple[tuple[Tensor, Tensor], ...]
"""A pair for each producing layer: filters [n, fan_in] and the channel of each, [n]."""
Selector = Callable[[Filters, int, torch.Generator], Tensor]
"""(filters, width of the group, generator) -> scores [width]; the highest are kept."""


def l1(filters: Filters, width: int, _generator: torch.Generator) -> Tensor:
    """Sum of the absolute weights."""
    return _summed(filters, width, order=1)


def l2(filters: Filters, width: int, _generator: torch.Generator) -> Tensor:
    """Euclidean norm of the weights."""
    return _summed(filters, width, order=2)


def random(_filters: Filters, width: int, generator: torch.Generator) -> Tensor:
    """Uniform in [0, 1), whatever the weights."""
    return torch.rand(width, generator=generator, dtype=torch.float64)


SELECTORS: Mapping[Criterion, Selector] = {
    Criterion.L1: l1,
    Criterion.L2: l2,
    Criterion.RANDOM: random,
}


def filters_of(model: nn.Module, group: ChannelGroup) -> Filters:
    """The filters of the group's producing layers, on the CPU in float64.

    Float64 on one device, so that every machine keeps the same filters.
    """
    pairs = []
    for member in group.members:
        if member.side is not Side.OUT or member.name not in group.producers:
            continue
        layer = model.get_submodule(member.name)
        weight = model.get_parameter(f"{member.name}.weight").detach().to("cpu", torch.float64)
        if isinstance(layer, TransposedConvolution):
            weight = weight.transpose(0, 1)
        rows = weight.flatten(1)[torch.tensor(member.indices)]
        pairs.append((rows, torch.tensor(member.channels)))
    return tuple(pairs)


def _summed(filters: Filters, width: int, *, order: int) -> Tensor:
    scores = torch.zeros(width, dtype=torch.float64)
    for rows, channels in filters:
        norms = torch.linalg.vector_norm(rows, ord=order, dim=1)
        scores.index_add_(0, channels, norms)
    return scores
