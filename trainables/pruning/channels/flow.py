"""The flow of channels through one forward pass: labels of tensors, and what is noted of them.

Rules (`trainables.pruning.channels.operations`) are given a `Call` and the `Flows` of the pass so
far; what they note adds up to a `Trace`, from which `trainables.pruning.channels.engine` reads the
groups.
"""

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from trainables.backbones.modes import Mode
from trainables.pruning.channels.groups import LAYERS, Side
from trainables.pruning.channels.ties import FIXED, ChannelTies, along


@dataclass(frozen=True, kw_only=True)
class Flow:
    """The channels of one tensor, and where they come from."""

    labels: Tensor
    """The channel of each element."""
    makers: frozenset[str] = frozenset()
    """The layers whose outputs reach it channel by channel."""
    node: int | None = None
    """Its place in the order of execution; `None` where it is not computed from the images."""


@dataclass(frozen=True, kw_only=True)
class Call:
    """One operation of PyTorch as a model called it, and what it returned."""

    func: Any
    """The operation."""
    args: Sequence[Any]
    """Arguments by position."""
    kwargs: Mapping[str, Any]
    """Arguments by name."""
    output: Any
    """A tensor, or several."""

    @property
    def name(self) -> str:
        """The operation's name, without the underscore of its in-place form."""
        name: str = self.func._schema.name
        return name.partition("::")[2].rstrip("_")

    @property
    def first_output(self) -> Tensor:
        """The output, or the first where there are several."""
        first: Tensor = self.output if isinstance(self.output, Tensor) else self.output[0]
        return first

    def argument(self, position: int, name: str, default: Any) -> Any:
        """An argument that may be given by position, by name or not at all."""
        if len(self.args) > position:
            return self.args[position]
        return self.kwargs.get(name, default)


@dataclass(frozen=True, kw_only=True)
class TracedBlocks:
    """Equal blocks of channels that must keep equally many, as a view or a split asks for."""

    name: str
    """The module that asks."""
    count: int
    """Number of blocks."""
    labels: Tensor
    """[width], block after block."""


@dataclass(frozen=True, kw_only=True)
class TracedWidth:
    """An attribute in which a module keeps a number of channels."""

    name: str
    """The module."""
    attribute: str
    """Its attribute, an integer or a list of them."""
    position: int | None
    """In the list; `None` for an integer."""
    labels: Tensor
    """The channels that it counts."""


@dataclass(frozen=True, kw_only=True)
class TracedMixing:
    """A module that computes a statistic over channels, and so sees fewer after a cut."""

    name: str
    """The module."""
    dim: int
    """Where its input has channels."""
    labels: Tensor
    """[width], along that dimension."""


@dataclass(kw_only=True)
class Trace:
    """Everything that one forward pass tells about channels."""

    ties: ChannelTies = field(default_factory=ChannelTies)
    """Which channels go together."""
    sides: dict[tuple[str, Side], Tensor] = field(default_factory=dict)
    """Labels [width] of each side of each layer and of each bare tensor."""
    widths: dict[str, int] = field(default_factory=dict)
    """Output widths of the layers that make channels, in order of execution."""
    inputs: dict[str, frozenset[str]] = field(default_factory=dict)
    """The layers whose outputs each layer reads."""
    blocks: list[TracedBlocks] = field(default_factory=list)
    """Equal blocks that views and splits ask for."""
    declared: list[TracedWidth] = field(default_factory=list)
    """Attributes that count channels."""
    mixings: dict[str, TracedMixing] = field(default_factory=dict)
    """Statistics over channels, by module."""
    gates: set[str] = field(default_factory=set)
    """Layers that only scale what others make, as squeeze-and-excite branches do."""
    trunk: list[Tensor] = field(default_factory=list)
    """Labels of each tensor that every way from the images to the output passes through."""
    outputs: list[Flow] = field(default_factory=list)
    """Flows of the model's outputs."""
    loose: dict[str, int] = field(default_factory=dict)
    """Widths of the weights that something outside of layers computes with."""
    modes: tuple[Mode, ...] = (Mode.EVAL,)
    """The modes in which the model differs."""
    draws: bool = False
    """Whether it draws random numbers in either mode."""


class Flows:
    """The flows of a running pass by tensor, and the trace that they leave."""

    def __init__(self, skeleton: nn.Module, images: Tensor) -> None:
        self.trace = Trace()
        self.ties = self.trace.ties
        self._bare = _bare_tensors(skeleton)
        self._flows: dict[int, Flow] = {}
        self._alive: list[Tensor] = []  # so that no two tensors share an id
        self._modules: list[tuple[str, nn.Module, Any]] = [("", skeleton, images)]
        self._parents: list[tuple[int, ...]] = []  # of each node, in order of execution
        self._node_labels: list[Tensor] = []
        self.note(images, torch.full((), FIXED).expand(images.shape), parents=())

    def of(self, tensor: Any) -> Flow | None:
        """The flow of `tensor`, if any; bare parameters and buffers get labels of their own."""
        if not isinstance(tensor, Tensor):
            return None
        found = self._flows.get(id(tensor))
        if found is None and id(tensor) in self._bare and tensor.is_floating_point():
            name = self._bare[id(tensor)]
            labels = self.ties.fresh(tensor.numel()).view(tensor.shape)
            self.trace.sides[name, Side.BOTH] = labels
            found = self._flows[id(tensor)] = Flow(labels=labels)
        return found

    def first(self, call: Call) -> Flow:
        """The flow of the first argument, for operations on one tensor."""
        flow = self.of(call.args[0])
        assert flow is not None  # rules are asked only where something flows
        return flow

    def entering(self, *values: Any) -> list[Flow]:
        """The flows of all tensors in `values`, which may be nests."""
        return [flow for leaf in tree_leaves(values) if (flow := self.of(leaf))]

    def note(
        self,
        tensor: Tensor,
        labels: Tensor,
        *,
        parents: Sequence[Flow],
        makers: frozenset[str] | None = None,
    ) -> None:
        """Notes the labels of a tensor that was computed from `parents`."""
        if makers is None:
            makers = frozenset().union(*(parent.makers for parent in parents))
        before = tuple(parent.node for parent in parents if parent.node is not None)
        node = None
        if before or not self._parents:
            node = len(self._parents)
            self._parents.append(before)
            self._node_labels.append(labels)
        self._alive.append(tensor)
        self._flows[id(tensor)] = Flow(labels=labels, makers=makers, node=node)

    def pin(self, labels: Tensor, what: str) -> None:
        """The channels stay, because of `what` the running module does with them."""
        name, module, _ = self._modules[-1]
        where = f"{name or 'the model'} ({type(module).__name__})"
        self.ties.pin(labels, f"{where} {what}.")

    def stop(self, call: Call, what: str) -> None:
        """Channels are not followed through `what` is called: all that enter it stay."""
        flows = self.entering(call.args, dict(call.kwargs))
        for flow in flows:
            self.pin(flow.labels, f"uses {what}, through which channels are not followed")
        for tensor in tree_leaves(call.output):
            if isinstance(tensor, Tensor):
                self.note(tensor, torch.full((), FIXED).expand(tensor.shape), parents=flows)

    def ask_for_blocks(self, count: int, labels: Tensor) -> None:
        """`labels` [width] fall into `count` blocks that must keep equally many."""
        if count > 1:
            name = self._modules[-1][0]
            self.trace.blocks.append(TracedBlocks(name=name, count=count, labels=labels))

    def declare(self, sizes: Sequence[int], labels: Sequence[Tensor]) -> bool:
        """Whether the running module keeps `sizes`, the numbers of `labels`, as attributes."""
        name, module, _ = self._modules[-1]
        found = False
        for attribute, value in vars(module).items():
            if type(value) is int and value > 1:
                for size, counted in zip(sizes, labels, strict=True):
                    if value == size:
                        self._declare(name, attribute, None, counted)
                        found = True
                        break
            elif isinstance(value, list | tuple) and list(value) == list(sizes):
                for position, counted in enumerate(labels):
                    self._declare(name, attribute, position, counted)
                found = True
        return found

    def mix(self) -> bool:
        """Whether the running module may see fewer channels of its input: it has no layers."""
        name, module, value = self._modules[-1]
        flow = self.of(value)
        if flow is None or not name or any(isinstance(m, LAYERS) for m in module.modules()):
            return False
        dims = [d for d in range(flow.labels.dim()) if self.ties.varies(flow.labels, d)]
        if len(dims) != 1:
            return False
        labels = along(flow.labels, dims[0])
        self.trace.mixings[name] = TracedMixing(name=name, dim=dims[0], labels=labels)
        return True

    def note_gate(self, factors: Sequence[Flow]) -> frozenset[str]:
        """The makers of a product, without those that only scale the others."""
        gates: set[str] = set()
        for this, other in (factors, factors[::-1]):
            if len(this.makers) == 1 and not this.makers & other.makers:
                (layer,) = this.makers
                if other.makers & self._upstream(layer):
                    gates.add(layer)
        if len(gates) == len(factors[0].makers | factors[1].makers):
            gates = set()
        self.trace.gates |= gates
        return (factors[0].makers | factors[1].makers) - gates

    def enter(self, name: str, module: nn.Module, value: Any) -> None:
        """`module` begins to run on `value`, inside of the module that runs."""
        self._modules.append((name, module, value))

    def leave(self) -> None:
        """The module that was entered last has run."""
        self._modules.pop()

    def finish(self, output: Any) -> None:
        """Completes the trace, once the pass in eval mode has ended with `output`."""
        self.trace.outputs = self.entering(output)
        ends = [flow.node for flow in self.trace.outputs if flow.node is not None]
        trunk = _dominators(self._parents, ends)
        self.trace.trunk = [self._node_labels[node] for node in trunk]

    def finish_training(self, output: Any) -> None:
        """Adds the outputs of a pass in train mode that followed the one in eval mode."""
        self.trace.outputs += self.entering(output)

    def _declare(self, name: str, attribute: str, position: int | None, labels: Tensor) -> None:
        self.trace.declared.append(
            TracedWidth(name=name, attribute=attribute, position=position, labels=labels)
        )

    def _upstream(self, layer: str) -> set[str]:
        seen: set[str] = set()
        stack = [layer]
        while stack:
            fresh = self.trace.inputs.get(stack.pop(), frozenset()) - seen
            seen |= fresh
            stack.extend(fresh)
        return seen


Rule = Callable[[Flows, Call], None]
"""Gives a call's output its labels."""


def _dominators(parents: Sequence[Sequence[int]], ends: Sequence[int]) -> list[int]:
    """Nodes on every way to `ends`: in order of execution, no edge leads past them."""
    if not ends:
        return []
    used, stack = set(ends), list(ends)
    while stack:
        fresh = set(parents[stack.pop()]) - used
        used |= fresh
        stack.extend(fresh)
    order = sorted(used)
    place = {node: position for position, node in enumerate(order)}
    reach = [0] * len(order)  # the last node that each leads to directly
    for node in order:
        for parent in parents[node]:
            reach[place[parent]] = max(reach[place[parent]], place[node])
    furthest = itertools.accumulate([0, *reach[:-1]], max)
    return [node for node, before in zip(order, furthest, strict=True) if before <= place[node]]


def _bare_tensors(skeleton: nn.Module) -> dict[int, str]:
    """Parameters and buffers that no layer of a standard kind holds, by id."""
    inside = {
        id(tensor)
        for module in skeleton.modules()
        if isinstance(module, LAYERS)
        for tensor in itertools.chain(module.parameters(), module.buffers())
    }
    named = itertools.chain(skeleton.named_parameters(), skeleton.named_buffers())
    return {id(tensor): name for name, tensor in named if id(tensor) not in inside}
