"""Reductions: what becomes of each channel of a group, and of each input of the layers behind it.

One view for every way to prune. Of a group's C channels K stay; M [K, C] says what each that stays
carries afterwards, and B [C, K] how the layers that read the group make up for those that go:

    x' = M x    in the layers that make or carry the channels
    W' = W B    in the layers that read them

Dropping: M = B = I[:, kept] (transposed for M). Folding: M averages clusters, B adds them up.
Ridge correction (`trainables.pruning.ridge`): M as it is, B fitted to images.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from trainables.pruning.channels.groups import ChannelGroup, Member, Side

GONE = -1
"""Stands for a channel that is dropped."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Reduction:
    """The channels of one group, and which of them stands for each afterwards."""

    group: ChannelGroup
    """The group as it is in the dense model."""
    stands: Tensor
    """[width]: for each channel the one that stands for it afterwards. A channel that stays stands
    for itself; `GONE` where none does."""

    @property
    def kept(self) -> Tensor:
        """The channels that stay, ascending."""
        return kept_of(self.stands)

    @property
    def merges(self) -> bool:
        """Whether some channel lives on in another."""
        return bool((self.stands >= 0).sum() > len(self.kept))


@dataclass(frozen=True, kw_only=True, eq=False)
class ReducedLayer:
    """One side of one layer that loses channels, as all its groups ask for together."""

    name: str
    """Qualified name of the module or parameter."""
    side: Side
    """Which of the layer's channels are meant."""
    stands: Tensor
    """[channels]: as in `Reduction`, by the layer's own index, over `taps`."""
    taps: int = 1
    """Consecutive inputs of the layer that are one channel: the places of a flattened map."""

    @property
    def kept(self) -> Tensor:
        """The channels that stay, ascending."""
        return kept_of(self.stands)


def dropped(group: ChannelGroup, kept: Tensor) -> Reduction:
    """Only `kept` stays, and nothing stands for the others."""
    stands = torch.full((group.width,), GONE)
    stands[kept] = kept
    return Reduction(group=group, stands=stands)


def kept_of(stands: Tensor) -> Tensor:
    """The channels that stand for themselves, ascending."""
    return (stands == torch.arange(len(stands))).nonzero().flatten()


def membership(stands: Tensor) -> Tensor:
    """B [C, K] of folding: each channel is taken to equal the one that stands for it."""
    return (stands[:, None] == kept_of(stands)).double()


def summed(stands: Tensor, values: Tensor) -> Tensor:
    """Bᵀ values [K, ...] of values [C, ...]: sums over what each channel that stays stands for."""
    alive = stands >= 0
    rank = torch.cumsum(stands == torch.arange(len(stands)), dim=0) - 1
    sums = values.new_zeros(len(kept_of(stands)), *values.shape[1:])
    members = alive.to(values.device)
    return sums.index_add_(0, rank[stands[alive]].to(values.device), values[members])


def averaged(stands: Tensor, values: Tensor) -> Tensor:
    """M values [K, ...] of values [C, ...]: means over what each channel that stays stands for."""
    sizes = summed(stands, torch.ones(len(stands))).to(values)
    return summed(stands, values) / sizes.view(-1, *[1] * (values.dim() - 1))


def reduced_layers(reductions: Iterable[Reduction]) -> tuple[ReducedLayer, ...]:
    """Every side of every layer that `reductions` change; a layer's groups are put together.

    An input that several groups share goes when one of them gives it up.
    """
    members: dict[tuple[str, Side], list[tuple[Member, Tensor]]] = {}
    for reduction in reductions:
        for member in reduction.group.members:
            members.setdefault((member.name, member.side), []).append((member, reduction.stands))
    layers = (_layer(name, side, found) for (name, side), found in members.items())
    return tuple(layer for layer in layers if len(layer.kept) < len(layer.stands))


def _layer(name: str, side: Side, members: Sequence[tuple[Member, Tensor]]) -> ReducedLayer:
    stands = list(range(members[0][0].width))
    for member, channel_stands in members:
        indices: dict[int, list[int]] = {}
        for channel, index in zip(member.channels, member.indices, strict=True):
            indices.setdefault(channel, []).append(index)
        for channel, own in indices.items():
            theirs = indices.get(int(channel_stands[channel]), [])
            # channels that the layer sees at different numbers of places cannot stand in
            targets = theirs if len(theirs) == len(own) else [GONE] * len(own)
            for index, target in zip(own, targets, strict=True):
                stands[index] = GONE if stands[index] == GONE else target
    found = torch.tensor(stands)
    survives = found == torch.arange(len(found))
    found[(found >= 0) & ~survives[found.clamp_min(0)]] = GONE
    taps = _taps(found, [member for member, _ in members]) if side is Side.IN else 1
    channels = torch.where(found < 0, GONE, found // taps)[::taps] if taps > 1 else found
    return ReducedLayer(name=name, side=side, stands=channels, taps=taps)


def _taps(stands: Tensor, members: Sequence[Member]) -> int:
    """How many neighbouring inputs every channel owns, where all own equally many; else 1."""
    counts = {len(member.indices) / max(1, len(set(member.channels))) for member in members}
    taps = int(counts.pop())
    if counts or taps < 2 or len(stands) % taps:
        return 1
    rows = stands.view(-1, taps)
    first = rows[:, :1]
    whole = torch.where(first < 0, GONE, first + torch.arange(taps))
    aligned = bool((first[first >= 0] % taps == 0).all())
    return taps if aligned and torch.equal(rows, whole) else 1
