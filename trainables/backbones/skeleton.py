"""Skeletons: models without values, and the key that all models of one structure share.

On the meta device tensors have shapes and no values, so that a model can be traced without being
run: its FLOPs, its memory, the channels that belong together.
"""

import copy
import functools
import itertools
from collections.abc import Hashable, Iterator, Mapping
from enum import Enum
from types import CellType, FunctionType, MethodType
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
        (name, parametrize.type_before_parametrizations(module), _attributes(module))
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


_OF_TORCH = frozenset(vars(nn.Module())) | {"parametrizations"}
"""The attributes that every module has: its mode, its tensors, its modules and its hooks."""


def _attributes(module: nn.Module) -> tuple[str, ...]:
    """Describes all that a module holds besides its tensors and modules."""
    own = {name: value for name, value in vars(module).items() if name not in _OF_TORCH}
    return tuple(f"{name}={_described(value, ())}" for name, value in sorted(own.items()))


def _described(value: Any, around: tuple[int, ...]) -> str:
    """A value in words that are equal for equal values in any process; not by its address.

    `around` are the ids of what it lies in, so that a ring ends.
    """
    if value is None or isinstance(value, bool | int | float | complex | str | bytes):
        return repr(value)
    if isinstance(value, torch.dtype | torch.device | torch.Size | Enum | type | range | slice):
        return repr(value)
    if id(value) in around:
        return "itself"
    around = (*around, id(value))
    kind = f"{type(value).__module__}.{type(value).__qualname__}"
    if isinstance(value, nn.Module):
        return kind  # its own entry tells the rest
    if isinstance(value, Tensor):
        return f"{kind}{tuple(value.shape)}{value.dtype}"
    if isinstance(value, Mapping):
        items = sorted(f"{_described(k, around)}:{_described(v, around)}" for k, v in value.items())
        return f"{kind}{items}"
    if isinstance(value, list | tuple):
        return f"{kind}{[_described(part, around) for part in value]}"
    if isinstance(value, set | frozenset):
        return f"{kind}{sorted(_described(part, around) for part in value)}"
    if isinstance(value, functools.partial):
        return f"{kind}{_described((value.func, value.args, value.keywords), around)}"
    if isinstance(value, FunctionType):
        return _function(value, around)
    if isinstance(value, MethodType):
        return f"{value.__func__.__qualname__} of {_described(value.__self__, around)}"
    if callable(value) and hasattr(value, "__qualname__"):
        return f"{getattr(value, '__module__', '')}.{value.__qualname__}"
    return f"{kind}{_described(getattr(value, '__dict__', {}), around)}"


def _function(function: FunctionType, around: tuple[int, ...]) -> str:
    """A function by name, and by what it was made with, which lambdas of one name differ in."""
    cells = [cell.cell_contents for cell in function.__closure__ or () if _filled(cell)]
    made_with = (cells, function.__defaults__, function.__kwdefaults__)
    code = function.__code__
    where = f"{function.__module__}.{function.__qualname__}:{code.co_firstlineno}"
    return f"{where}{code.co_code.hex()}{_described(made_with, around)}"


def _filled(cell: CellType) -> bool:
    try:
        _ = cell.cell_contents  # asking is the only way to know
    except ValueError:
        return False
    return True
