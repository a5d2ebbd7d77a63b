"""Cuts layers: the one place where weights lose channels.

All cuts name channels of the dense model and are made at once, all or none.
"""

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from trainables.errors import InfeasibleError, InputError
from trainables.pruning.channels.groups import (
    ChannelwiseNorm,
    Convolution,
    Side,
    TransposedConvolution,
    is_depthwise,
    obstacle,
)
from trainables.pruning.settling import UnsoundError
from trainables.pruning.structure import Cut, Resize

Sides = Mapping[Side, Cut]


def apply(model: nn.Module, cuts: Sequence[Cut], resizes: Sequence[Resize] = ()) -> None:
    """Make `cuts` in `model`, in place; parameters keep `requires_grad`, device and dtype.

    `resizes` are the attributes that count the channels which are cut.

    Parameters that are cut are new objects without gradients, so make the optimiser afterwards.
    Raises `InputError` where the model has other layers or widths than the cuts were made for, and
    `UnsoundError` where a layer cannot be cut; the model is then as it was.
    """
    by_layer: dict[str, dict[Side, Cut]] = {}
    for cut in cuts:
        by_layer.setdefault(cut.name, {})[cut.side] = cut
    with torch.inference_mode(mode=False), torch.no_grad():
        results = [_attempt(model, name, sides) for name, sides in by_layer.items()]
        owners = [(_owner(model, resize), resize) for resize in resizes]
        for result in results:
            result.commit()
        for owner, resize in owners:
            kind = type(getattr(owner, resize.attribute))
            setattr(owner, resize.attribute, kind(resize.value))


@dataclass(frozen=True, kw_only=True)
class _Result:
    """The tensors and attributes that a layer will have."""

    owner: nn.Module
    tensors: Mapping[str, Tensor]
    attributes: Mapping[str, object]

    def commit(self) -> None:
        for name, tensor in self.tensors.items():
            old = getattr(self.owner, name)
            if isinstance(old, nn.Parameter):
                tensor = nn.Parameter(tensor, requires_grad=old.requires_grad)
            setattr(self.owner, name, tensor)
        for name, value in self.attributes.items():
            setattr(self.owner, name, value)


def _owner(model: nn.Module, resize: Resize) -> nn.Module:
    try:
        owner = model.get_submodule(resize.name)
        old = getattr(owner, resize.attribute)
    except AttributeError as error:
        raise InputError(
            f"{type(model).__name__} has no {resize.attribute!r} in {resize.name!r}; a pruned "
            "structure fits only the architecture it was made from."
        ) from error
    counts = type(old) is int if isinstance(resize.value, int) else isinstance(old, list | tuple)
    if not counts:
        raise InputError(
            f"{resize.attribute!r} in {resize.name!r} is a {type(old).__name__} and counts no "
            "channels; a pruned structure fits only the architecture it was made from."
        )
    return owner


def _attempt(model: nn.Module, name: str, sides: Sides) -> _Result:
    try:
        return _cut(model, name, sides)
    except InfeasibleError as error:
        raise UnsoundError(str(error), near=[name], place=-1) from error


def _cut(model: nn.Module, name: str, sides: Sides) -> _Result:
    parent, _, leaf = name.rpartition(".")
    try:
        owner = model.get_submodule(parent)
        layer = getattr(owner, leaf)
    except AttributeError as error:
        raise InputError(
            f"{type(model).__name__} has no layer {name!r}; a pruned structure fits only the "
            "architecture it was made from."
        ) from error
    if isinstance(layer, Tensor):
        return _cut_bare(owner, leaf, layer, sides[Side.BOTH])
    if reason := obstacle(name, layer):
        raise InfeasibleError(reason)
    if is_depthwise(layer):
        return _cut_depthwise(layer, sides)
    for kinds, cutter in _CUTTERS:
        if isinstance(layer, kinds):
            return cutter(layer, sides)
    raise InfeasibleError(f"{name} is a {type(layer).__name__}, whose channels cannot be cut.")


def _check(cut: Cut, width: int) -> None:
    if cut.width != width:
        raise InputError(
            f"{cut.name} has {width} channels ({cut.side}) where the structure expects "
            f"{cut.width}; a pruned structure fits only the dense architecture it was made from."
        )


def _taken(layer: nn.Module, names: Sequence[str], cut: Cut) -> dict[str, Tensor]:
    """The named tensors of `layer`, those that exist, with the kept entries of dimension 0."""
    found = ((name, getattr(layer, name, None)) for name in names)
    return {name: _take(t, 0, cut.kept) for name, t in found if isinstance(t, Tensor)}


def _filterwise(layer: Convolution | TransposedConvolution) -> list[str]:
    """The tensors of `layer` with an entry for each filter: standardised ones have a gain too."""
    named = itertools.chain(
        layer.named_parameters(recurse=False), layer.named_buffers(recurse=False)
    )
    return [name for name, t in named if t.dim() and t.shape[0] == layer.out_channels]


def _take(tensor: Tensor, dim: int, kept: Sequence[int]) -> Tensor:
    return tensor.detach().index_select(dim, torch.tensor(kept, device=tensor.device))


def _cut_linear(layer: nn.Linear, sides: Sides) -> _Result:
    tensors: dict[str, Tensor] = {}
    attributes: dict[str, object] = {}
    weight = layer.weight
    if out := sides.get(Side.OUT):
        _check(out, layer.out_features)
        tensors = _taken(layer, ["weight", "bias"], out)
        weight = tensors["weight"]
        attributes["out_features"] = len(out.kept)
    if into := sides.get(Side.IN):
        _check(into, layer.in_features)
        tensors["weight"] = _take(weight, 1, into.kept)
        attributes["in_features"] = len(into.kept)
    return _Result(owner=layer, tensors=tensors, attributes=attributes)


def _cut_depthwise(layer: Convolution | TransposedConvolution, sides: Sides) -> _Result:
    cut = sides[Side.BOTH]
    _check(cut, layer.out_channels)
    widths = dict.fromkeys(("in_channels", "out_channels", "groups"), len(cut.kept))
    return _Result(owner=layer, tensors=_taken(layer, _filterwise(layer), cut), attributes=widths)


def _cut_convolution(layer: Convolution, sides: Sides) -> _Result:
    tensors: dict[str, Tensor] = {}
    attributes: dict[str, object] = {}
    weight = layer.weight
    if out := sides.get(Side.OUT):
        _check(out, layer.out_channels)
        _blocks(out, layer.groups)
        tensors = _taken(layer, _filterwise(layer), out)
        weight = tensors["weight"]
        attributes["out_channels"] = len(out.kept)
    if into := sides.get(Side.IN):
        _check(into, layer.in_channels)
        # each group of filters reads its own block of inputs, and may keep others than the next
        columns = _blocks(into, layer.groups)
        filters = weight.detach().chunk(layer.groups)
        tensors["weight"] = torch.cat(
            [_take(rows, 1, kept) for rows, kept in zip(filters, columns, strict=True)]
        )
        attributes["in_channels"] = len(into.kept)
    return _Result(owner=layer, tensors=tensors, attributes=attributes)


def _cut_transposed(layer: TransposedConvolution, sides: Sides) -> _Result:
    tensors: dict[str, Tensor] = {}
    attributes: dict[str, object] = {}
    weight: Tensor = layer.weight
    if out := sides.get(Side.OUT):
        _check(out, layer.out_channels)
        tensors = _taken(layer, ["bias"], out)
        tensors["weight"] = weight = _take(weight, 1, out.kept)
        attributes["out_channels"] = len(out.kept)
    if into := sides.get(Side.IN):
        _check(into, layer.in_channels)
        tensors["weight"] = _take(weight, 0, into.kept)
        attributes["in_channels"] = len(into.kept)
    return _Result(owner=layer, tensors=tensors, attributes=attributes)


def _cut_norm(
    layer: nn.BatchNorm2d | nn.InstanceNorm2d | nn.GroupNorm | nn.LayerNorm | nn.RMSNorm | nn.PReLU,
    sides: Sides,
) -> _Result:
    cut = sides[Side.BOTH]
    kept = len(cut.kept)
    match layer:
        case nn.GroupNorm():
            _check(cut, layer.num_channels)
            _blocks(cut, layer.num_groups)
            attributes: dict[str, object] = {"num_channels": kept}
        case nn.LayerNorm() | nn.RMSNorm():
            _check(cut, int(layer.normalized_shape[-1]))
            if len(layer.normalized_shape) != 1:
                raise InfeasibleError(
                    f"{cut.name} normalises {len(layer.normalized_shape)} dimensions at once and "
                    "cannot be cut."
                )
            attributes = {"normalized_shape": (kept,)}
        case nn.PReLU():
            _check(cut, layer.num_parameters)
            attributes = {"num_parameters": kept}
        case _:
            _check(cut, layer.num_features)
            attributes = {"num_features": kept}
    names = ["weight", "bias", "running_mean", "running_var"]
    return _Result(owner=layer, tensors=_taken(layer, names, cut), attributes=attributes)


def _cut_bare(owner: nn.Module, leaf: str, tensor: Tensor, cut: Cut) -> _Result:
    """A parameter or buffer of a module's own, such as the gain of a layer scale."""
    kept = _take(tensor, bare_dim(tensor, cut), cut.kept)
    return _Result(owner=owner, tensors={leaf: kept}, attributes={})


def bare_dim(tensor: Tensor, cut: Cut) -> int:
    """The dimension of a bare parameter or buffer in which its channels lie: the one as wide."""
    dims = [dim for dim, size in enumerate(tensor.shape) if size == cut.width]
    if len(dims) != 1:
        raise InfeasibleError(
            f"{cut.name} is a bare tensor of shape {tuple(tensor.shape)}, and which of its "
            f"dimensions holds the {cut.width} channels is unknown."
        )
    return dims[0]


def _blocks(cut: Cut, groups: int) -> list[list[int]]:
    """The kept channels of each of `groups` equal blocks, counted from its start."""
    size = cut.width // groups
    blocks: list[list[int]] = [[] for _ in range(groups)]
    for index in cut.kept:
        blocks[index // size].append(index % size)
    counts = sorted({len(block) for block in blocks})
    if len(counts) > 1 or counts == [0]:
        raise InfeasibleError(
            f"{cut.name} has {groups} groups, which must all keep equally many channels "
            f"({cut.side}), not {counts[0]} to {counts[-1]}."
        )
    return blocks


_CUTTERS: tuple[tuple[Any, Callable[..., _Result]], ...] = (
    (nn.Linear, _cut_linear),
    (Convolution, _cut_convolution),
    (TransposedConvolution, _cut_transposed),
    (ChannelwiseNorm, _cut_norm),
)
"""The way to cut each of `LAYERS`."""
