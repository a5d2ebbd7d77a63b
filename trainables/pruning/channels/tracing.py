"""Follows channels through a forward pass, operation by operation.

The pass runs on the meta device, where tensors have shapes but no values. With each tensor goes a
tensor of labels (`trainables.pruning.channels.ties`): a layer gives its outputs fresh ones, an
operation that moves elements moves their labels alike, one that works element by element ties those
that meet. What is not known is never taken for elementwise: the channels that enter it stay.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from trainables.backbones.modes import Mode, in_mode
from trainables.pruning.channels import operations
from trainables.pruning.channels.chance import is_draw
from trainables.pruning.channels.flow import Call, Flow, Flows, Trace, TracedMixing
from trainables.pruning.channels.groups import (
    LAYERS,
    Convolution,
    Side,
    TransposedConvolution,
    channel_dim,
    is_depthwise,
    passes_channels,
)
from trainables.pruning.channels.loose import LooseFilters
from trainables.pruning.channels.script import Script
from trainables.pruning.channels.ties import FIXED, along, spread


def trace_channels(skeleton: nn.Module, images: Tensor) -> Trace:
    """The trace of `skeleton`, on the meta device, over `images`.

    In eval mode, and in train mode as well where the model does other things in it; the way from
    the images to the output is that of eval mode. Passes on whatever the model's forward raises.
    """
    flows = Flows(skeleton, images)
    evaluated, training = _Tracer(flows), _Tracer(None)
    flows.finish(_pass(evaluated, in_mode(skeleton, Mode.EVAL), images))
    _pass(training, in_mode(skeleton, Mode.TRAIN), images)
    flows.trace.draws = evaluated.draws or training.draws
    if evaluated.script != training.script:
        flows.trace.modes = (Mode.EVAL, Mode.TRAIN)
        flows.finish_training(_pass(_Tracer(flows), skeleton, images))
    return flows.trace


def _pass(tracer: "_Tracer", skeleton: nn.Module, images: Tensor) -> Any:
    hooks = list(tracer.attach(skeleton))
    try:
        with torch.no_grad(), tracer:
            return skeleton(images)
    finally:
        for hook in hooks:
            hook.remove()


class _Tracer(TorchDispatchMode):
    """Sees every operation outside of layers, and every layer as a whole.

    Without `flows` it follows no channels and only writes the script.
    """

    def __init__(self, flows: Flows | None) -> None:
        TorchDispatchMode.__init__(self)
        self.script = Script()
        self.draws = False
        self._filters: LooseFilters | None = None
        self._flows = flows
        self._inside_layer = 0

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        named = kwargs or {}
        output = func(*args, **named)
        if self._inside_layer:
            return output
        leaves = tree_leaves((args, dict(named)))
        self.script.add(str(func), args, named, output)
        self.draws |= is_draw(func)
        if self._filters:
            self._filters.follow(func, leaves, output)
        if self._flows and any(self._flows.of(leaf) for leaf in leaves):
            call = Call(func=func, args=args, kwargs=named, output=output)
            operations.follow(self._flows, call)
        return output

    def attach(self, skeleton: nn.Module) -> Iterator[Any]:
        """Hooks on every module; remove them afterwards."""
        if self._flows:
            self._filters = LooseFilters(skeleton, self._flows)
        for name, module in skeleton.named_modules():
            if isinstance(module, LAYERS):
                yield module.register_forward_pre_hook(self._enter_layer)
                yield module.register_forward_hook(self._leave_layer(name))
            elif name and self._flows:
                yield module.register_forward_pre_hook(self._enter(name, self._flows))
                yield module.register_forward_hook(self._leave(self._flows))

    @staticmethod
    def _enter(name: str, flows: Flows) -> Callable[..., None]:
        def enter(module: nn.Module, inputs: tuple[Any, ...]) -> None:
            flows.enter(name, module, inputs[0] if inputs else None)

        return enter

    @staticmethod
    def _leave(flows: Flows) -> Callable[..., None]:
        def leave(_module: nn.Module, _inputs: Any, _output: Any) -> None:
            flows.leave()

        return leave

    def _enter_layer(self, _module: nn.Module, _inputs: Any) -> None:
        self._inside_layer += 1

    def _leave_layer(self, name: str) -> Callable[..., None]:
        def leave(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
            if self._inside_layer == 1:
                self.script.add(name, inputs, {}, output)
                if self._flows:
                    _Layers(self._flows).follow(name, module, inputs[0], output)
            self._inside_layer -= 1  # what follows labels is no step of the model's

        return leave


class _Layers:
    """Follows channels through whole layers."""

    def __init__(self, flows: Flows) -> None:
        self._flows = flows

    def follow(self, name: str, module: nn.Module, images: Any, output: Any) -> None:
        flow = self._flows.of(images)
        if not isinstance(output, Tensor):
            return
        if flow is None:
            flow = Flow(labels=torch.full((), FIXED).expand(images.shape))
        if passes_channels(module):
            self._flows.note(output, flow.labels, parents=(flow,))
            return
        dim = channel_dim(module, images)
        elsewhere = [
            d
            for d in range(flow.labels.dim())
            if d != dim and self._flows.ties.varies(flow.labels, d)
        ]
        if elsewhere:
            self._across(name, module, flow, output, dim=dim, elsewhere=elsewhere)
            return
        labels = along(flow.labels, dim)
        if _makes_channels(module):
            self._register(name, Side.IN, labels)
            self._flows.trace.inputs[name] = (
                self._flows.trace.inputs.get(name, frozenset()) | flow.makers
            )
            out = self._flows.trace.sides.get((name, Side.OUT))
            if out is None:
                out = self._flows.ties.fresh(output.shape[dim])
                self._register(name, Side.OUT, out)
                self._flows.trace.widths[name] = len(out)
            self._flows.note(
                output, spread(out, dim, output.shape), parents=(flow,), makers=frozenset({name})
            )
        else:
            self._register(name, Side.BOTH, labels)
            self._flows.note(output, spread(labels, dim, output.shape), parents=(flow,))

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
        if self._flows.ties.varies(flow.labels, dim) or not passes or not _makes_channels(module):
            kind = type(module).__name__
            self._flows.ties.pin(flow.labels, f"{name} ({kind}) reads channels spread over places.")
            labels = torch.full((), FIXED).expand(output.shape)
        else:
            labels = flow.labels.narrow(dim, 0, 1).expand(output.shape)
            if isinstance(module, Convolution) and len(elsewhere) == 1:
                # as in efficient channel attention, which slides along the channels
                self._flows.trace.mixings[name] = TracedMixing(
                    name=name, dim=elsewhere[0], labels=along(flow.labels, elsewhere[0])
                )
        if _makes_channels(module):
            self._flows.trace.inputs[name] = flow.makers
            self._flows.trace.widths.setdefault(name, output.shape[dim])
            # its outputs are places, not channels, and those of one filter belong to none
            makers = frozenset({name})
        else:
            makers = flow.makers
        self._flows.note(output, labels, parents=(flow,), makers=makers)

    def _register(self, name: str, side: Side, labels: Tensor) -> None:
        """Note the labels of a side; a layer that runs twice ties those of both times."""
        known = self._flows.trace.sides.setdefault((name, side), labels)
        if known is not labels:
            self._flows.ties.tie(known, labels)
            if bool((labels <= FIXED).any()) or bool((known <= FIXED).any()):
                reason = f"{name} also reads channels that stay."
                self._flows.ties.pin(labels, reason)
                self._flows.ties.pin(known, reason)


def _makes_channels(module: nn.Module) -> bool:
    kinds = nn.Linear | Convolution | TransposedConvolution
    return isinstance(module, kinds) and not is_depthwise(module)
