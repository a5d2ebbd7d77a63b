"""Skeletons: models without values, and the key that all models of one structure share.

On the meta device tensors have shapes and no values, so that a model can be traced without being
run: its FLOPs, its memory, the channels that belong together.
"""

import copy
import itertools
from collections.abc import Hashable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize


def meta_copy(model: nn.Module) -> nn.Module:
    """A deep copy on the meta device: same modules, shapes and `requires_grad`, no values.

    Parameters and buffers are not copied on the way, so the memory needed is that of the modules.
    """
    memo: dict[int, Any] = {}
    with torch.inference_mode(mode=False):
        for tensor in itertools.chain(model.parameters(), model.buffers()):
            empty = torch.empty_like(tensor, device="meta", requires_grad=False)
            memo[id(tensor)] = (
                nn.Parameter(empty, requires_grad=tensor.requires_grad)
                if isinstance(tensor, nn.Parameter)
                else empty
            )
        return copy.deepcopy(model, memo)


def structure_key(model: nn.Module, *, resolution: int) -> Hashable:
    """Everything that a trace depends on: equal keys, equal FLOPs and equal channel groups.

    Shapes alone would confuse models that differ in their strides. What parametrises a weight is
    a module by itself; the class that torch makes for its owner is another for each model.
    """
    modules = tuple(
        (name, parametrize.type_before_parametrizations(module), _plain_attributes(module))
        for name, module in model.named_modules()
    )
    tensors = tuple(
        (name, tuple(tensor.shape), tensor.dtype, tensor.requires_grad)
        for name, tensor in itertools.chain(model.named_parameters(), model.named_buffers())
    )
    return modules, tensors, resolution


def float_dtype(model: nn.Module) -> torch.dtype:
    """The dtype of the first floating parameter, which the model's input must have too."""
    dtypes = (p.dtype for p in model.parameters() if p.is_floating_point())
    return next(dtypes, torch.get_default_dtype())


def output_tensors(output: Any) -> Iterator[Tensor]:
    """Every tensor in a model's output, which may be a nest of tuples, lists and dicts."""
    if isinstance(output, Tensor):
        yield output
    elif isinstance(output, dict):
        for value in output.values():
            yield from output_tensors(value)
    elif isinstance(output, list | tuple):
        for value in output:
            yield from output_tensors(value)


def _plain_attributes(module: nn.Module) -> tuple[str, ...]:
    """Numbers, words and functions; functions by name, because their addresses change."""
    found = []
    for name, value in sorted(vars(module).items()):
        if name != "training" and isinstance(value, bool | int | float | str | tuple | list):
            found.append(f"{name}={value!r}")
        elif callable(value) and hasattr(value, "__qualname__"):
            found.append(f"{name}={value.__module__}.{value.__qualname__}")
    return tuple(found)
