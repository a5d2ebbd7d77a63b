"""The FLOP meter: what an image costs in a forward pass and in a training step.

One multiply-accumulate is 2 FLOPs. Convolutions, matrix products and attention count, elementwise
work does not. A training step costs the sum over layers of

    forward × (1 + [its input needs a gradient] + [its weight needs a gradient])

which is never assumed to be 3 × forward: the real forward and backward are traced on the meta
device, where tensors have shapes but no values.
"""

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn.utils import parametrize
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode, flop_registry

from trainables.backbones.contract import refusal
from trainables.backbones.layers import WEIGHTED, is_norm
from trainables.backbones.skeleton import (
    float_dtype,
    meta_copy,
    output_tensors,
    structure_key,
)
from trainables.errors import InputError
from trainables.remembered import Remembered

_log = logging.getLogger(__name__)
_PYTORCHS = ("aten", "prim", "prims", "profiler")  # namespaces of operations whose work is known
_BATCH = 2  # one image at 1 × 1 pixels would leave a norm in train mode without a variance


@dataclass(frozen=True, kw_only=True)
class StepCost:
    """FLOPs of one image, to be multiplied by their number: cost is linear in the batch."""

    forward_flops: float
    """One forward pass in eval mode: inference, validation, a repair pass."""
    train_flops: float
    """Forward and backward of a training step with the gradients that are switched on."""
    fixed_flops: float = 0.0
    """FLOPs of a training step that do not depend on its batch: parametrised weights are made, and
    gradients led back through them (`torch.nn.utils.parametrize`). Other models have none."""
    uncounted: tuple[str, ...] = ()
    """Operations of other libraries, whose work is not known and in none of the sums."""

    @property
    def inference_flops(self) -> float:
        """The same as `forward_flops`, under the name measurements use."""
        return self.forward_flops


_counted = Remembered[StepCost](size=256)


def count_flops(model: nn.Module, *, resolution: int) -> StepCost:
    """FLOPs of one image of 3 × `resolution` × `resolution` through `model`.

    `requires_grad` decides what the step costs, so freeze first and count then. The model is
    copied without its values and never run, changed or moved. The training step is counted in
    train mode except for the norms, whose work is not counted in either mode. Equal structures
    are counted once per process; structures are equal when modules, their plain attributes,
    shapes and `requires_grad` are. Raises `InputError` where the model cannot be traced.
    """
    if resolution < 1:
        raise InputError(
            f"resolution={resolution} must be at least 1 pixel; give the side of the images that "
            "the model will see."
        )
    key = structure_key(model, resolution=resolution)
    return _counted.get(key, lambda: _trace(model, resolution=resolution))


def trace_flops(module: nn.Module, *, input_shape: Sequence[int]) -> StepCost:
    """FLOPs of one input of `input_shape` through any module, counted anew at every call.

    Counts as `count_flops` does, for parts of a model; raises what the module raises on such an
    input.
    """
    with torch.inference_mode(mode=False), torch.enable_grad():
        skeleton = meta_copy(module)
        inputs = torch.empty((_BATCH, *input_shape), dtype=float_dtype(module), device="meta")
        unknown = _Unknown()
        with unknown:
            forward, training = _passes(skeleton, inputs)
        uncounted = tuple(sorted(unknown.names))
        if not any(parametrize.is_parametrized(part) for part in skeleton.modules()):
            return StepCost(
                forward_flops=forward / _BATCH, train_flops=training / _BATCH, uncounted=uncounted
            )
        # A second batch size tells what grows with the batch from what does not.
        larger_forward, larger_training = _passes(skeleton, torch.cat([inputs, inputs]))
    train_flops = (larger_training - training) / _BATCH
    return StepCost(
        forward_flops=(larger_forward - forward) / _BATCH,
        train_flops=train_flops,
        fixed_flops=training - _BATCH * train_flops,
        uncounted=uncounted,
    )


def layer_flops(model: nn.Module, *, resolution: int) -> dict[str, StepCost]:
    """FLOPs of one image in each convolution and linear layer, by the name of its weight.

    Counts as `count_flops` does; `train_flops` has the weight's gradient and its input's where they
    are needed. A weight keeps its plain name where it is parametrised.
    """
    costs: dict[str, StepCost] = {}

    def record(name: str, layer: Any, inputs: tuple[torch.Tensor], output: torch.Tensor) -> None:
        # every weight's value meets every place of the output, a transposed one's of the input
        at = inputs[0] if getattr(layer, "transposed", False) else output
        channels = at.shape[-1] if isinstance(layer, nn.Linear) else at.shape[1]
        weight = layer.weight
        forward = 2 * at.numel() / channels * weight.numel() / _BATCH
        seen = costs.get(name, StepCost(forward_flops=0.0, train_flops=0.0))
        passes = 1 + inputs[0].requires_grad + weight.requires_grad
        costs[name] = StepCost(
            forward_flops=seen.forward_flops + forward,
            train_flops=seen.train_flops + passes * forward,
        )

    with torch.inference_mode(mode=False), torch.enable_grad():
        skeleton = meta_copy(model)
        for part in skeleton.modules():
            part.training = not is_norm(part)
        for name, layer in skeleton.named_modules():
            if isinstance(layer, WEIGHTED):
                layer.register_forward_hook(partial(record, f"{name}.weight"))
        shape = (_BATCH, 3, resolution, resolution)
        skeleton(torch.empty(shape, dtype=float_dtype(model), device="meta"))
    return costs


def does_work(func: Any) -> bool:
    """Whether an operation multiplies matrices or convolves, or may: it is not PyTorch's own."""
    return _is_counted(func) or func.namespace not in _PYTORCHS


def _passes(skeleton: nn.Module, inputs: torch.Tensor) -> tuple[float, float]:
    """FLOPs of a forward pass in eval mode, and of a step in train mode, norms in eval mode."""
    skeleton.eval()
    with _flop_counter() as counter, torch.no_grad():
        skeleton(inputs)
    forward_flops = counter.get_total_flops()
    for part in skeleton.modules():
        part.training = not is_norm(part)
    with _flop_counter() as counter:
        outputs = [t for t in output_tensors(skeleton(inputs)) if t.requires_grad]
        if outputs:
            torch.autograd.backward(outputs, [torch.ones_like(t) for t in outputs])
    return forward_flops, counter.get_total_flops()


def _trace(model: nn.Module, *, resolution: int) -> StepCost:
    try:
        cost = trace_flops(model, input_shape=(3, resolution, resolution))
    except Exception as error:  # whatever a user's forward may raise
        raise InputError(
            f"The FLOPs of {type(model).__name__} at {resolution} pixels cannot be counted: "
            f"{type(error).__name__}: {error}; {refusal(model, resolution=resolution)}."
        ) from error
    if cost.uncounted:
        _log.warning(
            "%s uses %s, whose work is not known and is counted as none.",
            type(model).__name__,
            ", ".join(cost.uncounted),
        )
    return cost


def _is_counted(func: Any) -> bool:
    return func._overloadpacket in flop_registry or func._overloadpacket in _FORMULAS


class _Unknown(TorchDispatchMode):
    """Names the operations that are not PyTorch's and have no formula."""

    def __init__(self) -> None:
        TorchDispatchMode.__init__(self)
        self.names: set[str] = set()

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if does_work(func) and not _is_counted(func):
            self.names.add(str(func._overloadpacket))
        return func(*args, **(kwargs or {}))


def _flop_counter() -> FlopCounterMode:
    return FlopCounterMode(display=False, custom_mapping=dict(_FORMULAS))


def _vector_flops(matrix_shape: Sequence[int], *_: object, **__: object) -> int:
    """A matrix, or a vector, times a vector."""
    return 2 * math.prod(matrix_shape)


def _added_vector_flops(_: object, matrix_shape: Sequence[int], *__: object, **___: object) -> int:
    return 2 * math.prod(matrix_shape)


def _summed_products_flops(
    _: object, a_shape: Sequence[int], b_shape: Sequence[int], *__: object, **___: object
) -> int:
    """The sum over a batch of matrix products."""
    return 2 * math.prod(a_shape) * b_shape[-1]


def _convolution_backward_flops(
    grad_out_shape: Sequence[int],
    x_shape: Sequence[int],
    w_shape: Sequence[int],
    _bias: object,
    _stride: object,
    _padding: object,
    _dilation: object,
    transposed: bool,  # noqa: FBT001  # the operator's own signature
    _output_padding: object,
    _groups: int,
    output_mask: Sequence[bool],
    **_kwargs: object,
) -> int:
    """One forward's FLOPs for each of the two gradients (input, weight) that are asked for.

    Replaces PyTorch's formula (2.13 to 2.15), which counts the weight gradient of grouped
    convolutions `groups` times over. `w_shape` holds channels per group already, so that no
    factor for groups is needed.
    """
    places = x_shape[2:] if transposed else grad_out_shape[2:]
    forward = 2 * x_shape[0] * math.prod(places) * math.prod(w_shape)
    return forward * (bool(output_mask[0]) + bool(output_mask[1]))


_FORMULAS: Mapping[Any, Callable[..., int]] = {
    torch.ops.aten.convolution_backward: _convolution_backward_flops,
    # PyTorch has none for these
    torch.ops.aten.mv: _vector_flops,
    torch.ops.aten.dot: _vector_flops,
    torch.ops.aten.vdot: _vector_flops,
    torch.ops.aten.addmv: _added_vector_flops,
    torch.ops.aten.addbmm: _summed_products_flops,
}
"""FLOPs by operation, from the shapes of its arguments."""
