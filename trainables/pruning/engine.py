"""Finds the channel groups of a network; the only file that imports torch_pruning.

Torch-Pruning traces a model through autograd and links the layers whose channels depend on each
other. Only that graph is used, and the library only ever sees a copy without values: it drops
frozen parameters from its graph, switches gradients on, leaves the model in eval mode, and its own
pruning rounds widths, skips groups and reorders norms without a word. Here widths, choice and cuts
are our own. The graph may be wrong too, for an operation it does not know passes for an elementwise
one; hence `trainables.pruning.proof`.
"""

import sys
import time
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from types import FrameType
from typing import Any

import torch
import torch_pruning
from torch import nn
from torch_pruning.ops import OPTYPE

from trainables.compute import float_dtype, meta_copy
from trainables.errors import InfeasibleError
from trainables.pruning.groups import (
    ChannelGraph,
    ChannelGroup,
    Convolution,
    Member,
    Side,
    TransposedConvolution,
    is_depthwise,
)

GRAPH_SECONDS = 60.0
"""Time limit on building a graph; the median model takes well under one second."""

_JOINS = {OPTYPE.CONCAT, OPTYPE.SPLIT, OPTYPE.SLICE, OPTYPE.UNBIND}
_LAYERS = {OPTYPE.CONV, OPTYPE.LINEAR}
_SIDED = (Convolution, TransposedConvolution, nn.Linear)
_CHANNELWISE = (
    nn.modules.batchnorm._NormBase,
    nn.LayerNorm,
    nn.GroupNorm,
    nn.PReLU,
)


def find_groups(
    model: nn.Module,
    *,
    resolution: int,
    head: Collection[str],
    channels: int = 3,
    seconds: float = GRAPH_SECONDS,
) -> ChannelGraph:
    """The channel groups of `model`, whose classifier's modules are named in `head`.

    Channels of the input images form no group. Channels that a gated split ties to one another
    are not told apart from free ones. Raises `InfeasibleError` where the model cannot be traced or
    that takes longer than `seconds`; a group with a layer that cannot be cut has a `fault`.
    """
    skeleton = _traceable_copy(model)
    names = {id(module): name for name, module in skeleton.named_modules()}
    names |= {id(p): name for name, p in skeleton.named_parameters()}
    layers: dict[str, int] = {}
    hooks = [
        module.register_forward_hook(_note_width(layers, name))
        for name, module in skeleton.named_modules()
        if isinstance(module, _SIDED) and not is_depthwise(module)
    ]
    shape = 1, channels, resolution, resolution
    graph = torch_pruning.DependencyGraph()
    try:
        with (
            warnings.catch_warnings(),
            torch.inference_mode(mode=False),
            torch.enable_grad(),
            _time_limit(seconds),
        ):
            warnings.simplefilter("ignore")  # its doubts are settled by the proof, not by a print
            images = torch.empty(shape, dtype=float_dtype(model), device="meta")
            graph.build_dependency(
                skeleton, images, forward_fn=lambda net, batch: net(batch), verbose=False
            )
            found = list(graph.get_all_groups())
    except Exception as error:  # whatever a user's forward or the library may raise
        raise InfeasibleError(
            f"The channels of {type(model).__name__} at {resolution} pixels cannot be traced: "
            f"{type(error).__name__}: {error}."
        ) from error
    for hook in hooks:
        hook.remove()
    order = {name: position for position, name in enumerate(layers)}
    groups = [_read(group, graph=graph, names=names, head=head, order=order) for group in found]
    groups.sort(key=lambda group: order.get(group.name, len(order)))
    return ChannelGraph(groups=tuple(groups), layers=layers)


@contextmanager
def _time_limit(seconds: float) -> Iterator[None]:
    """Raise `TimeoutError` inside the block once it has taken `seconds` of processor time.

    The library's searches never finish on some models and cannot be interrupted from outside. An
    alarm signal works in the main thread alone; the interpreter's profile hook, which sees every
    call, works in any. Processor time, so that a busy node makes no recipe infeasible. A profiler
    that was running pauses meanwhile, one written in C for good.
    """
    deadline = time.thread_time() + seconds

    def check(_frame: FrameType, _event: str, _argument: Any) -> None:
        if time.thread_time() > deadline:
            raise TimeoutError(f"its dependency graph took longer than {seconds:g} s")

    previous = sys.getprofile()
    sys.setprofile(check)
    try:
        yield
    finally:
        sys.setprofile(previous if callable(previous) else None)


def _traceable_copy(model: nn.Module) -> nn.Module:
    try:
        skeleton = meta_copy(model)
    except Exception as error:  # whatever a user's attributes may raise when copied
        raise InfeasibleError(
            f"{type(model).__name__} cannot be copied for tracing: {type(error).__name__}: {error}."
        ) from error
    for parameter in skeleton.parameters():
        parameter.requires_grad = parameter.is_floating_point()
    attentions: list[Any] = [m for m in skeleton.modules() if hasattr(m, "fused_attn")]
    for attention in attentions:
        attention.fused_attn = False  # timm: matrix products can be traced, the kernel cannot
    return skeleton.eval()


def _note_width(layers: dict[str, int], name: str) -> Callable[[nn.Module, Any, Any], None]:
    def note(module: nn.Module, _inputs: Any, _output: Any) -> None:
        layers[name] = _width(module, Side.OUT)

    return note


def _read(
    group: Any,
    *,
    graph: Any,
    names: Mapping[int, str],
    head: Collection[str],
    order: Mapping[str, int],
) -> ChannelGroup:
    root = group[0].dep.target
    members: list[Member] = []
    fault = None
    made_by: dict[str, Any] = {}
    read_by: dict[str, Any] = {}
    for item in group:
        node = item.dep.target
        name = names.get(id(node.module))
        if name is None:  # an operation, not a layer
            continue
        side = _side(node, item.dep.handler, graph=graph)
        if node.type in _LAYERS:
            (made_by if side is Side.OUT else read_by)[name] = node
        fault = fault or _fault(item, side=side, name=name)
        if fault is None:
            members.append(
                Member(
                    name=name,
                    side=side,
                    width=_width(node.module, side, dim=node.pruning_dim),
                    blocks=_blocks(node.module),
                    channels=tuple(item.root_idxs),
                    indices=tuple(item.idxs),
                )
            )
    types = {item.dep.target.type for item in group}
    gates = _gates(list(made_by.values())) if len(made_by) > 1 else set()
    producers = [name for name, node in made_by.items() if node not in gates]
    producers.sort(key=lambda name: order.get(name, len(order)))
    return ChannelGroup(
        name=producers[0] if producers else names[id(root.module)],
        width=_width(root.module, Side.OUT),
        members=tuple(members),
        producers=tuple(producers),
        consumers=tuple(name for name, node in read_by.items() if not _only_gates(node, gates)),
        joins=not types.isdisjoint(_JOINS),
        is_output=OPTYPE.OUTPUT in types or any(name in head for name in made_by),
        is_representation=any(name in head for name in read_by),
        fault=fault,
    )


def _side(node: Any, handler: Any, *, graph: Any) -> Side:
    if node.type not in _LAYERS:
        return Side.BOTH
    return Side.OUT if graph.is_out_channel_pruning_fn(handler) else Side.IN


def _fault(item: Any, *, side: Side, name: str) -> str | None:
    """Why the layer of a group's `item` cannot be cut, if it cannot."""
    node = item.dep.target
    module = node.module
    kind = type(module).__name__
    if isinstance(module, _SIDED):
        if node.type == OPTYPE.DEPTHWISE_CONV and not is_depthwise(module):
            return f"{name} is a {kind} with one filter a group that reads several channels."
        if (
            isinstance(module, TransposedConvolution)
            and module.groups > 1
            and side is not Side.BOTH
        ):
            return f"{name} is a grouped transposed convolution, which cannot be cut."
    elif not isinstance(module, _CHANNELWISE) and node.type != OPTYPE.PARAMETER:
        return f"{name} is a {kind}, whose channels cannot be cut."
    width = _width(module, side, dim=node.pruning_dim)
    if None in item.root_idxs or not all(0 <= index < width for index in item.idxs):
        return (
            f"{name} has {width} channels ({side}), but the dependency graph ties others to it; it "
            "does not follow an operation beside this layer."
        )
    return None


def _width(module: nn.Module | nn.Parameter, side: Side, *, dim: int = -1) -> int:
    match module:
        case nn.Parameter():
            return module.shape[dim]
        case nn.Linear():
            return module.in_features if side is Side.IN else module.out_features
        case nn.LayerNorm():
            return int(module.normalized_shape[-1])
        case nn.GroupNorm():
            return module.num_channels
        case nn.PReLU():
            return module.num_parameters
        case nn.modules.batchnorm._NormBase():
            return module.num_features
    if isinstance(module, Convolution | TransposedConvolution):
        return module.in_channels if side is Side.IN else module.out_channels
    raise InfeasibleError(f"{type(module).__name__} has no channels that can be cut.")


def _blocks(module: nn.Module | nn.Parameter) -> int:
    if isinstance(module, nn.GroupNorm):
        return module.num_groups
    if isinstance(module, Convolution | TransposedConvolution) and not is_depthwise(module):
        return module.groups
    return 1


def _gates(producers: list[Any]) -> set[Any]:
    """The producers that only scale what the others make, as squeeze-and-excite branches do.

    A gate enters a product alone, the other factor is made by producers of the same group without
    it, and it is itself computed from one of those.
    """
    gates = set()
    for node in producers:
        for product in _first_joins(node):
            if not product.grad_fn.name().startswith("MulBackward"):
                continue
            factors = [_makers(factor) for factor in product.inputs]
            others = set().union(*(made for made in factors if node not in made))
            if {node} in factors and others.intersection(_upstream(node)):
                gates.add(node)
    return gates


def _only_gates(consumer: Any, gates: set[Any]) -> bool:
    """Whether everything computed from `consumer` enters the network through `gates`."""
    if not gates:
        return False
    seen, stack = {consumer}, [consumer]
    while stack:
        node = stack.pop()
        if node in gates:
            continue
        if not node.outputs:
            return False
        fresh = set(node.outputs) - seen
        seen |= fresh
        stack.extend(fresh)
    return True


def _first_joins(node: Any) -> Iterator[Any]:
    """The first operations after `node`, channel by channel, that have a second input."""
    seen, stack = set(), list(node.outputs)
    while stack:
        following = stack.pop()
        if following in seen or following.type in _LAYERS:
            continue
        seen.add(following)
        if len(following.inputs) > 1:
            yield following
        else:
            stack.extend(following.outputs)


def _makers(node: Any) -> set[Any]:
    """The layers whose outputs reach `node` channel by channel."""
    makers, seen, stack = set(), set(), [node]
    while stack:
        preceding = stack.pop()
        if preceding in seen:
            continue
        seen.add(preceding)
        if preceding.type in _LAYERS:
            makers.add(preceding)
        else:
            stack.extend(preceding.inputs)
    return makers


def _upstream(node: Any) -> set[Any]:
    seen: set[Any] = set()
    stack = list(node.inputs)
    while stack:
        preceding = stack.pop()
        if preceding not in seen:
            seen.add(preceding)
            stack.extend(preceding.inputs)
    return seen
