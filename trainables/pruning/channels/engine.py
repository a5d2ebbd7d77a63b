"""Finds the channel groups of a network by following its channels through a forward pass.

Channels that meet in an elementwise operation stay or go together; those with the same layers on
their way form a group. The pass may still miss a tie, in a value that a module computed when it was
made for instance; hence `trainables.pruning.proof`.

Which channels are internal to a block follows from the graph alone. Neither the representation nor
a residual stream is: a stream is read by a layer from which a way leads back to it. Of the others,
channels are internal if some way from the images to the output avoids them, as the shortcut does
what happens in a block. Where a network has one way only they must be made by one layer and read by
one, and so must all channels that this one reads. Where blocks have next to no channels of their
own, as in RepVGG, all but the representation are internal.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from trainables.backbones.skeleton import float_dtype, meta_copy, structure_key
from trainables.errors import InfeasibleError
from trainables.pruning.channels.flow import Trace
from trainables.pruning.channels.groups import (
    ChannelGraph,
    ChannelGroup,
    ChannelMixing,
    Convolution,
    DeclaredWidth,
    Member,
    Side,
    TransposedConvolution,
    is_depthwise,
    obstacle,
)
from trainables.pruning.channels.ties import along, collapsed
from trainables.pruning.channels.tracing import trace_channels
from trainables.remembered import Remembered

_LEAST_INTERNAL = 0.05
"""Least share of all filters; with less, blocks are said to have none of their own."""


def find_groups(model: nn.Module, *, resolution: int, head: Collection[str]) -> ChannelGraph:
    """The channel groups of `model`, whose classifier's modules are named in `head`.

    Found once per process for equal structures at one resolution. Channels of the input images form
    no group. Raises `InfeasibleError` where the model does not run on the meta device; a group
    that cannot be cut has a `fault`.
    """
    key = structure_key(model, resolution=resolution), frozenset(head)
    return _graphs.get(key, lambda: _graph(model, resolution=resolution, head=head))


_graphs = Remembered[ChannelGraph](size=32)


def _graph(model: nn.Module, *, resolution: int, head: Collection[str]) -> ChannelGraph:
    skeleton = _traceable_copy(model)
    shape = (1, 3, resolution, resolution)
    images = torch.empty(shape, dtype=float_dtype(model), device="meta")
    try:
        trace = trace_channels(skeleton, images)
    except Exception as error:  # whatever a user's forward may raise
        raise InfeasibleError(
            f"The channels of {type(model).__name__} at {resolution} pixels cannot be traced: "
            f"{type(error).__name__}: {error}."
        ) from error
    return _Reader(skeleton, trace, head).graph()


def _traceable_copy(model: nn.Module) -> nn.Module:
    try:
        skeleton = meta_copy(model)
    except Exception as error:  # whatever a user's attributes may raise when copied
        raise InfeasibleError(
            f"{type(model).__name__} cannot be copied for tracing: {type(error).__name__}: {error}."
        ) from error
    return skeleton


class _Reader:
    """Reads the groups off a trace."""

    def __init__(self, skeleton: nn.Module, trace: Trace, head: Collection[str]) -> None:
        self._skeleton = skeleton
        self._trace = trace
        self._head = head
        self._members: list[_Roots] = []
        self._faults: dict[int, str] = {}
        for (name, side), labels in trace.sides.items():
            self._read_side(name, side, trace.ties.roots(labels))
        self._partitions = [
            _Roots(
                name=block.name,
                side=Side.BOTH,
                roots=tuple(trace.ties.roots(block.labels).tolist()),
                blocks=block.count,
            )
            for block in trace.blocks
        ]
        self._layers = _Layers(trace, self._members)
        self._outputs = self._roots(flow.labels for flow in trace.outputs)

    def graph(self) -> ChannelGraph:
        """All groups, in the order of execution."""
        order = {name: position for position, name in enumerate(self._trace.widths)}
        groups = [(roots, self._name(roots, order)) for roots in self._channel_sets()]
        groups.sort(key=lambda group: order.get(group[1], len(order)))
        where = {
            root: (number, channel)
            for number, (roots, _) in enumerate(groups)
            for channel, root in enumerate(roots)
        }
        members = _assigned(self._members, where)
        partitions = _assigned(self._partitions, where)
        inner = self._inner_roots()
        return ChannelGraph(
            groups=tuple(
                self._group(
                    name,
                    roots,
                    members=members.get(number, []),
                    partitions=partitions.get(number, []),
                    inner=inner,
                    order=order,
                )
                for number, (roots, name) in enumerate(groups)
            ),
            layers=dict(self._trace.widths),
            declared=tuple(
                DeclaredWidth(
                    name=width.name,
                    attribute=width.attribute,
                    position=width.position,
                    channels=self._places(width.labels, where),
                )
                for width in self._trace.declared
            ),
            mixings=tuple(
                ChannelMixing(name=m.name, dim=m.dim, channels=self._places(m.labels, where))
                for m in self._trace.mixings.values()
            ),
            loose={n: w for n, w in self._trace.loose.items() if n not in self._trace.widths},
            modes=self._trace.modes,
            draws=self._trace.draws,
        )

    def _read_side(self, name: str, side: Side, roots: Tensor) -> None:
        layer = _layer_at(self._skeleton, name)
        if isinstance(layer, Tensor):  # of whatever shape: find its channels
            dims = [d for d in range(roots.dim()) if self._trace.ties.varies(roots, d)]
            if len(dims) > 1:
                shape = tuple(layer.shape)
                reason = f"{name}, of shape {shape}, holds channels in no one dimension."
                self._blame(torch.unique(roots).tolist(), reason)
            if len(dims) != 1:
                return
            roots = along(roots, dims[0])
        members = tuple(roots.tolist())
        self._members.append(_Roots(name=name, side=side, roots=members, blocks=_blocks(layer)))
        if isinstance(layer, nn.Module) and (why := obstacle(name, layer)):
            self._blame(members, why)
        if isinstance(layer, TransposedConvolution) and layer.groups > 1 and side is not Side.BOTH:
            reason = f"{name} is a grouped transposed convolution, which cannot be cut."
            self._blame(members, reason)

    def _blame(self, roots: Collection[int], reason: str) -> None:
        for root in roots:
            self._faults.setdefault(root, reason)

    def _channel_sets(self) -> list[list[int]]:
        """The channels, as roots, that have the same layers on their way or share blocks."""
        parts: dict[int, list[int]] = {}
        for number, member in enumerate([*self._members, *self._partitions]):
            for root in dict.fromkeys(member.roots):
                parts.setdefault(root, []).append(number)
        made = [m for m in self._members if m.side is Side.OUT]
        sets: dict[tuple[int, ...], list[int]] = {}
        for root in dict.fromkeys(root for member in made for root in member.roots):
            sets.setdefault(tuple(parts[root]), []).append(root)
        merged = {root: roots for roots in sets.values() for root in roots}
        for member in [*self._members, *self._partitions]:
            if member.blocks > 1:
                self._merge(member, merged)
        unique = {id(roots): roots for roots in merged.values()}
        return [part for roots in unique.values() for part in self._without_faulty(roots)]

    def _merge(self, member: "_Roots", merged: dict[int, list[int]]) -> None:
        """Channels that must keep equally many are chosen together."""
        fixed = [root for root in member.roots if root not in merged or self._fault(root)]
        if fixed:
            reason = self._fault(fixed[0]) or "it holds channels that stay."
            self._blame(member.roots, f"{member.name} asks for equal blocks: {reason}")
        sets = {id(merged[root]): merged[root] for root in member.roots if root in merged}
        if len(sets) > 1:
            union = [root for roots in sets.values() for root in roots]
            for root in union:
                merged[root] = union

    def _without_faulty(self, roots: list[int]) -> list[list[int]]:
        faulty = [root for root in roots if self._fault(root)]
        sound = [root for root in roots if not self._fault(root)]
        return [part for part in (sound, faulty) if part]

    def _fault(self, root: int) -> str | None:
        return self._faults.get(root) or self._trace.ties.reason(root)

    def _name(self, roots: list[int], order: Mapping[str, int]) -> str:
        makers = self._layers.makers[roots[0]] or self._layers.all_makers[roots[0]]
        return min(makers, key=lambda name: order.get(name, len(order)))

    def _group(
        self,
        name: str,
        roots: list[int],
        *,
        members: list[Member],
        partitions: list[Member],
        inner: Collection[int],
        order: Mapping[str, int],
    ) -> ChannelGroup:
        made = {m.name for m in members if m.side is Side.OUT}
        read = {m.name for m in members if m.side is Side.IN}
        producers = sorted(made - self._trace.gates, key=lambda n: order.get(n, len(order)))
        return ChannelGroup(
            name=name,
            width=len(roots),
            members=tuple(members),
            producers=tuple(producers),
            consumers=tuple(n for n in order if n in read and not self._layers.only_gates(n)),
            partitions=tuple(partitions),
            is_output=not self._outputs.isdisjoint(roots) or not made.isdisjoint(self._head),
            is_representation=not read.isdisjoint(self._head),
            is_inner=all(root in inner for root in roots),
            fault=self._fault(roots[0]),
        )

    def _inner_roots(self) -> set[int]:
        layers = self._layers
        trunk = self._roots(self._trace.trunk)
        private = {
            root
            for root in layers.makers
            if len(layers.makers[root]) == 1 and len(layers.readers.get(root, ())) == 1
        }
        closed = {
            member.name
            for member in self._members
            if member.side is Side.IN and private.issuperset(member.roots)
        }
        hidden = {
            root for root in layers.makers if layers.readers.get(root, set()).isdisjoint(self._head)
        }
        internal = {
            root
            for root in hidden
            if not layers.is_stream(root)
            and (root not in trunk or (root in private and layers.readers[root] <= closed))
        }
        filters = {root: len(names) for root, names in layers.all_makers.items()}
        least = _LEAST_INTERNAL * sum(filters.values())
        return internal if sum(filters[root] for root in internal) >= least else hidden

    def _roots(self, tensors: Iterable[Tensor]) -> set[int]:
        """Every channel of `tensors`."""
        ties = self._trace.ties
        return {root for t in tensors for root in ties.roots(collapsed(t)).flatten().tolist()}

    def _places(
        self, labels: Tensor, where: Mapping[int, tuple[int, int]]
    ) -> tuple[tuple[int, int] | None, ...]:
        return tuple(where.get(root) for root in self._trace.ties.roots(labels).tolist())


@dataclass(frozen=True, kw_only=True)
class _Roots:
    """A side of a layer, or a partition, with the root of each of its channels."""

    name: str
    side: Side
    roots: tuple[int, ...]
    blocks: int


class _Layers:
    """Which layers make and read each channel, and how layers follow one another."""

    def __init__(self, trace: Trace, members: Sequence[_Roots]) -> None:
        self._trace = trace
        self._followers: dict[str, set[str]] = {}
        self._ancestors: dict[str, set[str]] = {}
        for name in trace.widths:  # in order of execution
            before = trace.inputs.get(name, frozenset())
            self._ancestors[name] = set(before).union(
                *(self._ancestors.get(layer, set()) for layer in before)
            )
            for layer in before:
                self._followers.setdefault(layer, set()).add(name)
        self._into_output = {layer for flow in trace.outputs for layer in flow.makers}
        self._only_gates: dict[str, bool] = {}
        for name in reversed(trace.widths):  # followers before those they follow
            self._only_gates[name] = self._leads_to_gates(name)
        self.all_makers = self._by_root(members, Side.OUT, leave_out=set())
        self.makers = self._by_root(members, Side.OUT, leave_out=trace.gates)
        gating = {name for name, only in self._only_gates.items() if only}
        self.readers = self._by_root(members, Side.IN, leave_out=gating)

    def only_gates(self, layer: str) -> bool:
        """Whether everything computed from `layer` enters the network through gates."""
        return self._only_gates.get(layer, False)

    def is_stream(self, root: int) -> bool:
        """Whether a layer that reads the channel leads back to one that makes it."""
        readers = self.readers.get(root, set())
        return any(
            maker in readers or not readers.isdisjoint(self._ancestors.get(maker, set()))
            for maker in self.makers[root]
        )

    def _leads_to_gates(self, name: str) -> bool:
        followers = self._followers.get(name, set())
        ends = name in self._trace.gates or followers
        return (
            bool(ends)
            and name not in self._into_output
            # a follower may run before, in a loop or in the pass of another mode
            and all(self._only_gates.get(f, False) for f in followers)
        )

    @staticmethod
    def _by_root(
        members: Sequence[_Roots], side: Side, *, leave_out: Collection[str]
    ) -> dict[int, set[str]]:
        found: dict[int, set[str]] = {}
        for member in members:
            if member.side is side:
                for root in member.roots:
                    names = found.setdefault(root, set())
                    if member.name not in leave_out:
                        names.add(member.name)
        return found


def _assigned(
    members: Sequence[_Roots], where: Mapping[int, tuple[int, int]]
) -> dict[int, list[Member]]:
    """The members of each group, by its number."""
    assigned: dict[int, list[Member]] = {}
    for member in members:
        pairs: dict[int, list[tuple[int, int]]] = {}
        for index, root in enumerate(member.roots):
            if root in where:
                group, channel = where[root]
                pairs.setdefault(group, []).append((channel, index))
        for group, found in pairs.items():
            found.sort()
            assigned.setdefault(group, []).append(
                Member(
                    name=member.name,
                    side=member.side,
                    width=len(member.roots),
                    blocks=member.blocks,
                    channels=tuple(channel for channel, _ in found),
                    indices=tuple(index for _, index in found),
                )
            )
    return assigned


def _layer_at(model: nn.Module, name: str) -> nn.Module | Tensor:
    owner = model.get_submodule(name.rpartition(".")[0])
    layer: nn.Module | Tensor = getattr(owner, name.rpartition(".")[2])
    return layer


def _blocks(layer: nn.Module | Tensor) -> int:
    if isinstance(layer, nn.GroupNorm):
        return layer.num_groups
    if isinstance(layer, Convolution | TransposedConvolution) and not is_depthwise(layer):
        return layer.groups
    return 1
