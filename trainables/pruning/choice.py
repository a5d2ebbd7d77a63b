"""The choice of channels that a plan makes, and the cuts and attributes that follow from it."""

import dataclasses
import functools
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from torch import nn

from trainables.errors import InfeasibleError
from trainables.pruning.channels.groups import ChannelGraph, ChannelGroup, Member, Side
from trainables.pruning.proof import MixedChannels
from trainables.pruning.reductions import Reduction
from trainables.pruning.structure import Cut, PrunedStructure, Resize, Skipped


@dataclass(frozen=True, kw_only=True)
class Choice:
    """The reductions of all groups that are pruned, seen on the whole model."""

    model: nn.Module
    """The dense model, whose attributes say how many channels there were."""
    graph: ChannelGraph
    """All groups of the model."""
    reductions: Sequence[Reduction]
    """One for each group that is pruned; the groups are the graph's own objects."""
    skipped: tuple[Skipped, ...]
    """Channels that stay although the width rule names them."""

    @functools.cached_property
    def structure(self) -> PrunedStructure:
        """The choice as cuts and attributes."""
        return PrunedStructure(
            cuts=_cuts(self.reductions), resizes=self._resizes(), skipped=self.skipped
        )

    def mixings(self) -> tuple[MixedChannels, ...]:
        """Statistics over channels, some of which go."""
        narrowed = (
            MixedChannels(
                name=mixing.name,
                dim=mixing.dim,
                kept=tuple(i for i, channel in enumerate(mixing.channels) if self._stays(channel)),
            )
            for mixing in self.graph.mixings
        )
        return tuple(
            mixed
            for mixed, mixing in zip(narrowed, self.graph.mixings, strict=True)
            if len(mixed.kept) < len(mixing.channels)
        )

    def position(self, group: ChannelGroup) -> int:
        """Position of one of the graph's own groups in it."""
        return self._positions[id(group)]

    def keeping(self, dense: Collection[int]) -> "Choice":
        """The same choice with the groups at these positions left dense."""
        reductions = tuple(r for r in self.reductions if self.position(r.group) not in dense)
        return dataclasses.replace(self, reductions=reductions)

    @functools.cached_property
    def _positions(self) -> dict[int, int]:
        return {id(group): number for number, group in enumerate(self.graph.groups)}

    @functools.cached_property
    def _kept_channels(self) -> dict[int, set[int]]:
        """By the group's position in the graph; groups that are not pruned are missing."""
        return {self.position(r.group): set(r.kept.tolist()) for r in self.reductions}

    def _stays(self, channel: tuple[int, int] | None) -> bool:
        if channel is None or channel[0] not in self._kept_channels:
            return True
        return channel[1] in self._kept_channels[channel[0]]

    def _resizes(self) -> tuple[Resize, ...]:
        values: dict[tuple[str, str], int | list[int]] = {}
        for width in self.graph.declared:
            key = width.name, width.attribute
            size = sum(map(self._stays, width.channels))
            if width.position is None:
                values[key] = size
                continue
            dense = getattr(self.model.get_submodule(width.name), width.attribute)
            sizes = values.setdefault(key, list(dense))
            assert isinstance(sizes, list)
            sizes[width.position] = size
        return tuple(
            Resize(name=name, attribute=attribute, value=value)
            for (name, attribute), sizes in values.items()
            if (value := tuple(sizes) if isinstance(sizes, list) else sizes)
            != self._dense(name, attribute)
        )

    def _dense(self, name: str, attribute: str) -> int | tuple[int, ...]:
        value = getattr(self.model.get_submodule(name), attribute)
        return value if isinstance(value, int) else tuple(value)


def _cuts(reductions: Sequence[Reduction]) -> tuple[Cut, ...]:
    removed: dict[tuple[str, Side], set[int]] = {}
    sides: dict[tuple[str, Side], Member] = {}
    for reduction in reductions:
        stays = set(reduction.kept.tolist())
        for member in reduction.group.members:
            key = member.name, member.side
            sides[key] = member
            removed.setdefault(key, set()).update(
                index
                for channel, index in zip(member.channels, member.indices, strict=True)
                if channel not in stays
            )
    for (name, side), gone in removed.items():
        if len(gone) == sides[name, side].width:
            raise InfeasibleError(f"{name} would lose all its channels ({side}).")
    return tuple(
        Cut(
            name=name,
            side=side,
            width=sides[name, side].width,
            kept=tuple(i for i in range(sides[name, side].width) if i not in gone),
        )
        for (name, side), gone in removed.items()
        if gone
    )
