"""Absorption: the channels that stay take over from those that go, by value alone.

Happens in the dense model just before it is cut, at the places that the cut leaves; shapes, and
with them all that was proved of the cuts, stay as they are.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from trainables.pruning.channels.groups import (
    Convolution,
    Side,
    TransposedConvolution,
    is_depthwise,
)
from trainables.pruning.reductions import (
    ReducedLayer,
    Reduction,
    averaged,
    kept_of,
    reduced_layers,
    summed,
)

Absorbing = Mapping[str, Sequence[Tensor]]
"""Layer name -> B [C, K] of each of its groups, float64 on the CPU; see `reductions`."""


def absorb(model: nn.Module, reductions: Sequence[Reduction], absorbing: Absorbing) -> None:
    """Write into `model` what `reductions` leave in the channels that stay.

    Layers that make or carry merged channels get the mean of each cluster. Layers that read get
    W B: with the B that `absorbing` names for them, else with the sums of each cluster. Where
    channels are merely dropped and nothing absorbs, no value changes.
    """
    merging = any(reduction.merges for reduction in reductions)
    if not merging and not absorbing:
        return
    with torch.inference_mode(mode=False), torch.no_grad():
        for layer in reduced_layers(reductions):
            if layer.side is not Side.IN:
                if merging:
                    _average(model, layer)
            elif merging or layer.name in absorbing:
                _rewrite_columns(model, layer, absorbing.get(layer.name))


def channel_tensors(model: nn.Module, name: str) -> tuple[tuple[Tensor, int], ...]:
    """The tensors of a layer that have an entry for each channel it makes, and along which
    dimension: weights, biases and running statistics."""
    parent, _, leaf = name.rpartition(".")
    layer = getattr(model.get_submodule(parent), leaf)
    if isinstance(layer, nn.Parameter):
        dim = next(d for d, size in enumerate(layer.shape) if size > 1)
        return ((layer, dim),)
    outputs = 1 if isinstance(layer, TransposedConvolution) and not is_depthwise(layer) else 0
    named = {"weight": outputs, "bias": 0, "running_mean": 0, "running_var": 0}
    found = ((getattr(layer, name, None), dim) for name, dim in named.items())
    return tuple((tensor, dim) for tensor, dim in found if isinstance(tensor, Tensor))


def blocks_of(model: nn.Module, layer: ReducedLayer) -> tuple[Tensor, ...]:
    """`layer.stands` by the groups of a grouped convolution, each counted from its own start."""
    module = model.get_submodule(layer.name)
    groups = module.groups if isinstance(module, Convolution) else 1
    size = len(layer.stands) // groups
    return tuple(
        torch.where(part < 0, part, part - start)
        for part, start in zip(
            layer.stands.split(size), range(0, len(layer.stands), size), strict=True
        )
    )


def _average(model: nn.Module, layer: ReducedLayer) -> None:
    for tensor, dim in channel_tensors(model, layer.name):
        values = tensor.to("cpu", torch.float64).movedim(dim, 0)
        kept = averaged(layer.stands, values).movedim(0, dim)
        tensor.index_copy_(dim, layer.kept.to(tensor.device), kept.to(tensor))


def _rewrite_columns(
    model: nn.Module, layer: ReducedLayer, matrices: Sequence[Tensor] | None
) -> None:
    """W[:, kept] = W B, group by group; B adds up clusters where it is not given."""
    module = model.get_submodule(layer.name)
    weight: Tensor = model.get_parameter(f"{layer.name}.weight")
    if isinstance(module, TransposedConvolution):
        weight = weight.transpose(0, 1)
    if layer.taps > 1:
        weight = weight.view(len(weight), -1, layer.taps)
    stands = blocks_of(model, layer)
    for block, (rows, part) in enumerate(zip(weight.chunk(len(stands)), stands, strict=True)):
        old = rows.to("cpu", torch.float64).movedim(1, 0)
        if matrices is None:
            columns = summed(part, old)
        else:
            columns = torch.tensordot(matrices[block], old, dims=([0], [0]))
        rows.index_copy_(1, kept_of(part).to(rows.device), columns.movedim(0, 1).to(rows))
