"""Proves that cuts are sound: the pruned network computes what the dense one does when masked.

The graph that cuts come from may be wrong without a sign: an unknown operation passes for an
elementwise one, shapes fit by accident. So the cuts are made in a copy with random weights, and
compared with a copy of equal weights in which the removed channels are zeroed instead. The two must
agree in every layer up to rounding, in float64, or the plan is infeasible. A norm across channels
(layer, group) sees fewer channels after a cut by design; in the masked copy it is given the kept
channels alone.

A model that does other things in training than in eval mode is compared in both. Random draws are
replaced by their expected values, dropout layers left out.
"""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from trainables.backbones.modes import Mode, in_mode
from trainables.backbones.skeleton import output_tensors
from trainables.errors import InfeasibleError, first_line
from trainables.pruning import surgery
from trainables.pruning.channels.chance import expected_draws
from trainables.pruning.channels.groups import (
    LAYERS,
    Convolution,
    Side,
    TransposedConvolution,
    channel_dim,
    is_depthwise,
    passes_channels,
)
from trainables.pruning.settling import UnsoundError
from trainables.pruning.structure import Cut, PrunedStructure

_IMAGES = 4  # a batch norm over 2 values would see nothing but their order
_RESOLUTION = 64  # channels depend on each other alike at every size
_TOLERANCE = 1e-6  # relative; float64 rounding through a hundred batch norms stays below 1e-9


@dataclass(frozen=True, kw_only=True)
class MixedChannels:
    """A module that computes a statistic over channels, and those it still sees."""

    name: str
    """Qualified name of the module, which has no layers that are cut."""
    dim: int
    """Where its input holds channels."""
    kept: tuple[int, ...]
    """Indices along it."""


def prove(
    model: nn.Module,
    structure: PrunedStructure,
    *,
    mixings: Sequence[MixedChannels] = (),
    resolution: int,
    modes: Sequence[Mode] = (Mode.EVAL,),
    draws: bool = False,
) -> None:
    """Raise `InfeasibleError` unless `structure` is sound for `model`, which still runs and trains.

    It is an `UnsoundError` that says where, unless the model does not run before it is cut. `modes`
    are those in which the dense model differs, and `draws` says whether it draws numbers. Runs on
    the CPU, at 64 pixels or less where the model accepts that and at `resolution` where it does
    not. The model itself is left alone.
    """
    for mode in modes:
        _prove_in(
            mode,
            model,
            structure,
            mixings=mixings,
            resolution=resolution,
            draws=draws,
            alike=len(modes) == 1,
        )


def _prove_in(
    mode: Mode,
    model: nn.Module,
    structure: PrunedStructure,
    *,
    mixings: Sequence[MixedChannels],
    resolution: int,
    draws: bool,
    alike: bool,
) -> None:
    """`alike`: the dense model does the same in both modes, and so must the pruned one."""
    masked = _randomised(model, mode)
    pruned = copy.deepcopy(masked)
    surgery.apply(pruned, structure.cuts, structure.resizes)
    for cut in structure.cuts:
        _mask(masked, cut)
    _narrow(masked, pruned, structure.cuts, mixings)
    with expected_draws(draws=draws):
        images, expected = _run_masked(masked, pruned, resolution=resolution)
    with torch.inference_mode(mode=False), torch.enable_grad(), expected_draws(draws=draws):
        found = _run_pruned(pruned, images, order=list(expected))
    kept: dict[str, tuple[int | None, tuple[int, ...]]]
    kept = {cut.name: (None, cut.kept) for cut in structure.cuts if cut.side is not Side.IN}
    kept |= {mixing.name: (mixing.dim, mixing.kept) for mixing in mixings}
    for name, (dim, channels_left) in kept.items():
        if name in expected:
            output = expected[name]
            along = channel_dim(pruned.get_submodule(name), output) if dim is None else dim
            expected[name] = output.index_select(along, torch.tensor(channels_left))
    _compare(found, expected)
    if alike:  # what training does with a number of channels shows once there are fewer
        _with_batch_statistics(in_mode(pruned, Mode.TRAIN))
        with torch.no_grad(), expected_draws(draws=draws):
            if not _ends_alike(pruned, images, found):
                _compare(_run_pruned(pruned, images, order=list(expected)), expected)


def _randomised(model: nn.Module, mode: Mode) -> nn.Module:
    """A copy in which no weight is zero or negligible, so that no path is invisible."""
    with torch.inference_mode(mode=False):
        net = in_mode(copy.deepcopy(model).to("cpu", torch.float64), mode)
        generator = torch.Generator().manual_seed(0)
        for parameter in net.parameters():
            with torch.no_grad():
                if parameter.dim() > 1:
                    fan_in = parameter[0].numel()
                    bound = (6 / fan_in) ** 0.5
                    parameter.uniform_(-bound, bound, generator=generator)
                else:
                    parameter.uniform_(0.5, 1.5, generator=generator)
            parameter.requires_grad = True
    return _with_batch_statistics(net)


def _with_batch_statistics(net: nn.Module) -> nn.Module:
    """`net` itself, whose batch norms go by the batch: that keeps deep signals alive."""
    for module in net.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.training = True
    return net


def _run_masked(
    masked: nn.Module, pruned: nn.Module, *, resolution: int
) -> tuple[Tensor, dict[str, Tensor]]:
    """Random images of the first size that the masked model runs on, and its outputs."""
    generator = torch.Generator().manual_seed(0)
    for side in (min(resolution, _RESOLUTION), resolution):
        shape = (_IMAGES, 3, side, side)
        images = torch.randn(shape, generator=generator, dtype=torch.float64)
        outputs = _Outputs(masked)
        try:
            with torch.no_grad():
                outputs.run(images)
        except _NarrowError as error:
            raise UnsoundError(
                f"{type(pruned).__name__} no longer runs once pruned; it fails in {error}.",
                near=[next(reversed(outputs.layers), "")],
                place=len(outputs.layers),
            ) from error
        except Exception as error:  # whatever a user's forward may raise
            failure = error
        else:
            return images, outputs.layers
    raise InfeasibleError(
        f"{type(pruned).__name__} does not run at {resolution} pixels: "
        f"{type(failure).__name__}: {failure}."
    ) from failure


def _run_pruned(pruned: nn.Module, images: Tensor, *, order: Sequence[str]) -> dict[str, Tensor]:
    """The output of every layer in a forward pass; a backward pass, if gradients are on,
    shows that it runs too.

    `order` is that in which the layers should run.
    """
    outputs = _Outputs(pruned)
    try:
        results = outputs.run(images)
        if wanted := [t for t in results if t.requires_grad]:
            torch.autograd.backward(wanted, [torch.ones_like(t) for t in wanted])
    except Exception as error:  # whatever a user's forward may raise
        last = next(reversed(outputs.layers), "")
        place = order.index(last) + 1 if last in order else 0
        raise UnsoundError(
            f"{type(pruned).__name__} no longer runs once pruned; it fails in or after "
            f"{outputs.entered}: {type(error).__name__}: {first_line(error)}.",
            near=[outputs.entered, last, *order[place : place + 1]],
            place=place,
        ) from error
    return outputs.layers


def _ends_alike(pruned: nn.Module, images: Tensor, before: Mapping[str, Tensor]) -> bool:
    """Whether the model's outputs are those of `before`, without a look at the layers."""
    try:
        outputs = list(output_tensors(pruned(images)))
    except Exception:  # the pass that looks at every layer says where
        return False
    names = (_output_name(number) for number in range(len(outputs)))
    pairs = zip(names, outputs, strict=True)
    return all(
        name in before and _difference(name, output, before[name]) is None for name, output in pairs
    )


def _output_name(number: int) -> str:
    return f"the model's output {number}"


class _Outputs:
    """The outputs of every layer and of the model in one pass, in the order of execution."""

    def __init__(self, net: nn.Module) -> None:
        self.layers: dict[str, Tensor] = {}
        self.entered = "the model"
        self._net = net

    def run(self, images: Tensor) -> list[Tensor]:
        """The model's outputs; what was entered last is known even if the pass fails."""
        hooks = []
        for name, module in self._net.named_modules():
            if isinstance(module, LAYERS) and not passes_channels(module):
                hooks.append(module.register_forward_hook(self._leave(name)))
            if name and not any(True for _ in module.children()):
                hooks.append(module.register_forward_pre_hook(self._enter(name)))
        try:
            outputs = list(output_tensors(self._net(images)))
        finally:
            for hook in hooks:
                hook.remove()
        for number, output in enumerate(outputs):
            self.layers[_output_name(number)] = output.detach()
        return outputs

    def _enter(self, name: str) -> Callable[..., None]:
        def enter(_module: nn.Module, _inputs: Any) -> None:
            self.entered = name

        return enter

    def _leave(self, name: str) -> Callable[..., None]:
        def leave(_module: nn.Module, _inputs: Any, output: Any) -> None:
            if isinstance(output, Tensor):
                self.layers[name] = output.detach().clone()  # what follows may work in place

        return leave


def _compare(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    for place, (name, output) in enumerate(expected.items()):
        if fault := _difference(name, found.get(name), output):
            raise UnsoundError(fault, near=[name], place=place)


def _difference(name: str, found: Tensor | None, expected: Tensor) -> str | None:
    """Says what is wrong with the output `found` of a layer; `None` where it is as expected."""
    if found is None:
        return f"Pruning makes the model pass {name} by."
    if found.shape != expected.shape:
        return (
            f"Pruning leaves {name} with an output of shape {tuple(found.shape)} where "
            f"{tuple(expected.shape)} was planned."
        )
    scale = expected.abs().max().item() if expected.numel() else 0.0
    error = (found - expected).abs().max().item() if expected.numel() else 0.0
    if error <= _TOLERANCE * max(scale, 1e-3):  # a NaN is not
        return None
    return (
        f"Pruning changes what {name} computes from the channels that are kept (relative error "
        f"{error / max(scale, 1e-3):.1g}); an operation before it mixes or moves channels in a way "
        "that the dependency graph does not follow."
    )


def _mask(net: nn.Module, cut: Cut) -> None:
    """Zero what `cut` removes."""
    removed = torch.tensor(cut.removed)
    layer = _at(net, cut.name)
    with torch.no_grad():
        if isinstance(layer, Tensor):
            layer.index_fill_(surgery.bare_dim(layer, cut), removed, 0)
        elif isinstance(layer, TransposedConvolution) and not is_depthwise(layer):
            layer.weight.index_fill_(0 if cut.side is Side.IN else 1, removed, 0)
        elif cut.side is Side.IN:
            groups = layer.groups if isinstance(layer, Convolution) else 1
            size = cut.width // groups
            for rows, start in zip(
                layer.weight.chunk(groups), range(0, cut.width, size), strict=True
            ):
                mine = removed[(removed >= start) & (removed < start + size)] - start
                rows.index_fill_(1, mine, 0)
        elif isinstance(getattr(layer, "weight", None), nn.Parameter):
            layer.weight.index_fill_(0, removed, 0)
        if cut.side is not Side.IN and isinstance(getattr(layer, "bias", None), nn.Parameter):
            layer.bias.index_fill_(0, removed, 0)


def _narrow(
    masked: nn.Module,
    pruned: nn.Module,
    cuts: Sequence[Cut],
    mixings: Sequence[MixedChannels],
) -> None:
    """Let what computes statistics over channels see the kept ones alone.

    Norms over channels, convolutions that standardise their weights, and the mixing modules: the
    masked copy passes what is kept to the pruned one, and puts zeros where channels are missing.
    """
    sides: dict[str, dict[Side, Cut]] = {}
    for cut in cuts:
        sides.setdefault(cut.name, {})[cut.side] = cut
    for name, found in sides.items():
        layer = _at(masked, name)
        norm = isinstance(layer, nn.LayerNorm | nn.RMSNorm | nn.GroupNorm)
        own = isinstance(layer, Convolution) and not type(layer).__module__.startswith("torch.")
        if not (norm or own) or not isinstance(layer, nn.Module):
            continue
        both = found.get(Side.BOTH)
        into, out = (found.get(side, both) for side in (Side.IN, Side.OUT))
        _see_only_kept(
            name,
            layer,
            pruned.get_submodule(name),
            dim=None,
            into=into.kept if into else None,
            out=out.kept if out else None,
        )
    for mixing in mixings:
        _see_only_kept(
            mixing.name,
            masked.get_submodule(mixing.name),
            pruned.get_submodule(mixing.name),
            dim=mixing.dim,
            into=mixing.kept,
            out=mixing.kept,
        )


def _see_only_kept(
    name: str,
    layer: nn.Module,
    narrow: nn.Module,
    *,
    dim: int | None,
    into: Sequence[int] | None,
    out: Sequence[int] | None,
) -> None:
    """`dim` holds the channels, by default where a layer of this kind has them."""

    def only_kept(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        maps = inputs[0]
        along = channel_dim(module, maps) if dim is None else dim
        if into is not None:
            maps = maps.index_select(along, torch.tensor(into))
        try:
            result: Tensor = narrow(maps)
        except Exception as error:  # whatever a user's forward may raise
            kind = type(module).__name__
            raise _NarrowError(f"{name} ({kind}): {first_line(error)}") from error
        if out is None or result.shape == output.shape:
            return result
        return torch.zeros_like(output).index_copy_(along, torch.tensor(out), result)

    layer.register_forward_hook(only_kept)


class _NarrowError(Exception):
    """A module fails on the channels that are kept; it never leaves this file."""


def _at(net: nn.Module, name: str) -> Any:
    return getattr(net.get_submodule(name.rpartition(".")[0]), name.rpartition(".")[2])
