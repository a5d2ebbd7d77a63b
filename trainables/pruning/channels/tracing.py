"""Follows channels through a forward pass, operation by operation.

The pass runs on the meta device, where tensors have shapes but no values. Beside each tensor goes a
tensor of labels (`trainables.pruning.channels.ties`): a layer gives its outputs fresh ones, an
operation that moves elements moves their labels alike, one that works element by element ties those
that meet. What is not known is never taken for elementwise: the channels that enter it stay.
"""

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from trainables.pruning.channels import operations
from trainables.pruning.channels.groups import (
    Convolution,
    Side,
    TransposedConvolution,
    channel_dim,
    is_depthwise,
)
from trainables.pruning.channels.ties import (
    FIXED,
    ChannelTies,
    along,
    spread,
)
from trainables.pruning.surgery import LAYERS


@dataclass(frozen=True, kw_only=True)
class Flow:
    """What is known of one tensor."""

    labels: Tensor
    """The channel of each element."""
    makers: frozenset[str] = frozenset()
    """The layers whose outputs reach it channel by channel."""
    node: int | None = None
    """Its place in the order of execution; `None` where it is not computed from the images."""


@dataclass(frozen=True, kw_only=True)
class Blocks:
    """Equal blocks of channels that must keep equally many, as a view or a split asks for."""

    name: str
    """The module that asks."""
    count: int
    """Number of blocks."""
    labels: Tensor
    """[width], block after block."""


@dataclass(frozen=True, kw_only=True)
class Width:
    """An attribute in which a module keeps a number of channels."""

    name: str
    """The module."""
    attribute: str
    """Its attribute, an integer or a list of them."""
    position: int | None
    """In the list; `None` for an integer."""
    labels: Tensor
    """Of the channels that it counts."""


@dataclass(frozen=True, kw_only=True)
class Mixing:
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
    blocks: list[Blocks] = field(default_factory=list)
    """What views and splits ask for."""
    declared: list[Width] = field(default_factory=list)
    """Attributes that count channels."""
    mixings: dict[str, Mixing] = field(default_factory=dict)
    """Statistics over channels, by module."""
    gates: set[str] = field(default_factory=set)
    """Layers that only scale what others make, as squeeze-and-excite branches do."""
    trunk: list[Tensor] = field(default_factory=list)
    """Labels of each tensor that every way from the images to the output passes through."""
    outputs: list[Flow] = field(default_factory=list)
    """Of the model's outputs."""


def trace_channels(skeleton: nn.Module, images: Tensor) -> Trace:
    """The trace of `skeleton`, on the meta device and in eval mode, over `images`.

    Passes on whatever the model's forward raises.
    """
    tracer = Tracer(skeleton, images)
    hooks = list(tracer.attach())
    try:
        with torch.no_grad(), tracer:
            output = skeleton(images)
    finally:
        for hook in hooks:
            hook.remove()
    return tracer.finish(output)


class Tracer(TorchDispatchMode):
    def __init__(self, skeleton: nn.Module, images: Tensor) -> None:
        TorchDispatchMode.__init__(self)
        self.trace = Trace()
        self.ties = self.trace.ties
        self._skeleton = skeleton
        self._bare = _bare_tensors(skeleton)
        self._flows: dict[int, Flow] = {}
        self._alive: list[Tensor] = []  # so that no two tensors share an id
        self._modules: list[tuple[str, nn.Module, Any]] = [("", skeleton, images)]
        self._inside_layer = 0
        self._nodes: list[tuple[int, ...]] = []
        self._node_labels: list[Tensor] = []
        self.note(images, torch.full((), FIXED).expand(images.shape), parents=())

    # ---- what operations ask of the tracer

    def flow(self, tensor: Any) -> Flow | None:
        """What is known of `tensor`; bare parameters and buffers get labels of their own."""
        if not isinstance(tensor, Tensor):
            return None
        found = self._flows.get(id(tensor))
        if found is None and id(tensor) in self._bare and tensor.is_floating_point():
            name = self._bare[id(tensor)]
            labels = self.ties.fresh(tensor.numel()).view(tensor.shape)
            self.trace.sides[name, Side.BOTH] = labels
            found = self._flows[id(tensor)] = Flow(labels=labels)
        return found

    def note(
        self,
        tensor: Tensor,
        labels: Tensor,
        *,
        parents: Sequence[Flow] | tuple[()],
        makers: frozenset[str] | None = None,
    ) -> None:
        """Note the labels of a tensor that was computed from `parents`."""
        if makers is None:
            makers = frozenset().union(*(parent.makers for parent in parents))
        before = tuple(parent.node for parent in parents if parent.node is not None)
        node = None
        if before or not self._nodes:
            node = len(self._nodes)
            self._nodes.append(before)
            self._node_labels.append(labels)
        self._alive.append(tensor)
        self._flows[id(tensor)] = Flow(labels=labels, makers=makers, node=node)

    def pin(self, labels: Tensor, what: str) -> None:
        """The channels stay, because of `what` the running module does with them."""
        name, module, _ = self._modules[-1]
        where = f"{name or 'the model'} ({type(module).__name__})"
        self.ties.pin(labels, f"{where} {what}.")

    def ask_for_blocks(self, count: int, labels: Tensor) -> None:
        """`labels` [width] fall into `count` blocks that must keep equally many."""
        if count > 1:
            name = self._modules[-1][0]
            self.trace.blocks.append(Blocks(name=name, count=count, labels=labels))

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
        flow = self.flow(value)
        if flow is None or not name or any(isinstance(m, LAYERS) for m in module.modules()):
            return False
        dims = [d for d in range(flow.labels.dim()) if self.ties.varies(flow.labels, d)]
        if len(dims) != 1:
            return False
        labels = along(flow.labels, dims[0])
        self.trace.mixings[name] = Mixing(name=name, dim=dims[0], labels=labels)
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

    # ---- the pass

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        output = func(*args, **(kwargs or {}))
        if not self._inside_layer:
            self._follow(func, args, kwargs or {}, output)
        return output

    def attach(self) -> Iterator[Any]:
        """Hooks on every module; remove them afterwards."""
        for name, module in self._skeleton.named_modules():
            if isinstance(module, LAYERS):
                yield module.register_forward_pre_hook(self._enter_layer)
                yield module.register_forward_hook(self._leave_layer(name))
            elif name:
                yield module.register_forward_pre_hook(self._enter(name))
                yield module.register_forward_hook(self._leave)

    def finish(self, output: Any) -> Trace:
        """The trace, once the pass has ended with `output`."""
        leaves = [leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor)]
        self.trace.outputs = [flow for leaf in leaves if (flow := self.flow(leaf))]
        ends = [flow.node for flow in self.trace.outputs if flow.node is not None]
        self.trace.trunk = [self._node_labels[node] for node in self._dominators(ends)]
        return self.trace

    def _follow(
        self, func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Any
    ) -> None:
        leaves = tree_leaves((args, dict(kwargs)))
        if not any(self.flow(leaf) for leaf in leaves):
            return  # constants
        operations.follow(self, func, args, kwargs, output)

    def _declare(self, name: str, attribute: str, position: int | None, labels: Tensor) -> None:
        self.trace.declared.append(
            Width(name=name, attribute=attribute, position=position, labels=labels)
        )

    def _upstream(self, layer: str) -> set[str]:
        seen: set[str] = set()
        stack = [layer]
        while stack:
            fresh = self.trace.inputs.get(stack.pop(), frozenset()) - seen
            seen |= fresh
            stack.extend(fresh)
        return seen

    def _dominators(self, ends: Sequence[int]) -> list[int]:
        """Nodes on every way to `ends`: in order of execution, no edge leads past them."""
        if not ends:
            return []
        used, stack = set(ends), list(ends)
        while stack:
            fresh = set(self._nodes[stack.pop()]) - used
            used |= fresh
            stack.extend(fresh)
        order = sorted(used)
        place = {node: position for position, node in enumerate(order)}
        reach = [0] * len(order)  # the last node that each leads to directly
        for node in order:
            for parent in self._nodes[node]:
                reach[place[parent]] = max(reach[place[parent]], place[node])
        furthest = itertools.accumulate([0, *reach[:-1]], max)
        return [node for node, before in zip(order, furthest, strict=True) if before <= place[node]]

    # ---- modules

    def _enter(self, name: str) -> Callable[..., None]:
        def enter(module: nn.Module, inputs: tuple[Any, ...]) -> None:
            self._modules.append((name, module, inputs[0] if inputs else None))

        return enter

    def _leave(self, _module: nn.Module, _inputs: Any, _output: Any) -> None:
        self._modules.pop()

    def _enter_layer(self, _module: nn.Module, _inputs: Any) -> None:
        self._inside_layer += 1

    def _leave_layer(self, name: str) -> Callable[..., None]:
        def leave(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
            self._inside_layer -= 1
            if self._inside_layer == 0:
                self._layer(name, module, inputs[0], output)

        return leave

    def _layer(self, name: str, module: nn.Module, images: Any, output: Any) -> None:
        flow = self.flow(images)
        if not isinstance(output, Tensor):
            return
        if flow is None:
            flow = Flow(labels=torch.full((), FIXED).expand(images.shape))
        dim = channel_dim(module, images)
        elsewhere = [
            d for d in range(flow.labels.dim()) if d != dim and self.ties.varies(flow.labels, d)
        ]
        if elsewhere:
            self._across(name, module, flow, output, dim=dim, elsewhere=elsewhere)
            return
        labels = along(flow.labels, dim)
        if _makes_channels(module):
            self._register(name, Side.IN, labels)
            self.trace.inputs[name] = self.trace.inputs.get(name, frozenset()) | flow.makers
            out = self.trace.sides.get((name, Side.OUT))
            if out is None:
                out = self.ties.fresh(output.shape[dim])
                self._register(name, Side.OUT, out)
                self.trace.widths[name] = len(out)
            self.note(
                output, spread(out, dim, output.shape), parents=(flow,), makers=frozenset({name})
            )
        else:
            self._register(name, Side.BOTH, labels)
            self.note(output, spread(labels, dim, output.shape), parents=(flow,))

    def _across(
        self,
        name: str,
        module: nn.Module,
        flow: Flow,
        output: Tensor,
        *,
        dim: int,
        elsewhere: list[int],
    ) -> None:
        """A layer whose input has its channels in another dimension than the layer expects."""
        passes = all(output.shape[d] == flow.labels.shape[d] for d in elsewhere)
        if self.ties.varies(flow.labels, dim) or not passes or not _makes_channels(module):
            kind = type(module).__name__
            self.ties.pin(flow.labels, f"{name} ({kind}) reads channels spread over places.")
            labels = torch.full((), FIXED).expand(output.shape)
        else:
            labels = flow.labels.narrow(dim, 0, 1).expand(output.shape)
            if isinstance(module, Convolution) and len(elsewhere) == 1:
                # as in efficient channel attention, which slides along the channels
                self.trace.mixings[name] = Mixing(
                    name=name, dim=elsewhere[0], labels=along(flow.labels, elsewhere[0])
                )
        if _makes_channels(module):
            self.trace.inputs[name] = flow.makers
            self.trace.widths.setdefault(name, output.shape[dim])
            # its outputs are places, not channels, and those of one filter belong to none
            makers = frozenset({name})
        else:
            makers = flow.makers
        self.note(output, labels, parents=(flow,), makers=makers)

    def _register(self, name: str, side: Side, labels: Tensor) -> None:
        """Note the labels of a side; a layer that runs twice ties those of both times."""
        known = self.trace.sides.setdefault((name, side), labels)
        if known is not labels:
            self.ties.tie(known, labels)
            if bool((labels <= FIXED).any()) or bool((known <= FIXED).any()):
                reason = f"{name} also reads channels that stay."
                self.ties.pin(labels, reason)
                self.ties.pin(known, reason)


def _makes_channels(module: nn.Module) -> bool:
    kinds = nn.Linear | Convolution | TransposedConvolution
    return isinstance(module, kinds) and not is_depthwise(module)


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
