"""Chance taken out of a pass: every draw is what it is on average.

A forward pass that draws numbers, as a functional dropout does in either mode, gives two networks
different ones. To be compared they must meet the same draws whatever their widths.
"""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode


def is_draw(func: Any) -> bool:
    """Whether an operation of PyTorch draws random numbers."""
    return torch.Tag.nondeterministic_seeded in func.tags


def expected_draws(*, draws: bool) -> AbstractContextManager[object]:
    """Inside of it random operations give their expected value, which no shape changes.

    Draws that have no known rule come from a generator that starts anew each time. Where the
    network `draws` nothing there is nothing to do, and it takes no time.
    """
    return _ExpectedDraws() if draws else nullcontext()


class _ExpectedDraws(TorchDispatchMode):
    def __init__(self) -> None:
        TorchDispatchMode.__init__(self)

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        named = dict(kwargs or {})
        if not is_draw(func):
            return func(*args, **named)
        name = func._schema.name.partition("::")[2].rstrip("_")
        if name in _WHOLE:
            return _WHOLE[name](*args, **named)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            drawn = func(*args, **named)
        if name in _VALUES and isinstance(drawn, Tensor):
            given = [value for value in (*args, *named.values()) if type(value) in (int, float)]
            drawn.fill_(_VALUES[name](given))
        return drawn


def _dropout(images: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
    return images.clone(), torch.ones_like(images, dtype=torch.bool)


def _bernoulli(images: Tensor, p: Tensor | float | None = None, **_: Any) -> Tensor:
    if p is None:  # the probabilities are its argument
        return images.clone()
    return images.copy_(p) if isinstance(p, Tensor) else images.fill_(p)


def _rrelu(images: Tensor, _noise: Tensor, *slopes: Any, **_: Any) -> Tensor:
    lower, upper = (float(slope) for slope in slopes[:2])
    return torch.nn.functional.leaky_relu(images, (lower + upper) / 2)


_WHOLE: Mapping[str, Callable[..., Any]] = {
    "native_dropout": _dropout,
    "bernoulli": _bernoulli,
    "rrelu_with_noise": _rrelu,
}
"""The function that stands for an operation, by its name."""

_VALUES: Mapping[str, Callable[[list[float]], float]] = {
    "rand": lambda _: 0.5,
    "rand_like": lambda _: 0.5,
    "randn": lambda _: 0.0,
    "randn_like": lambda _: 0.0,
    "normal": lambda given: given[0] if given else 0.0,
    "uniform": lambda given: sum(given[:2]) / 2 if len(given) > 1 else 0.5,
    "exponential": lambda given: 1 / given[0] if given else 1.0,
}
"""The value that a draw gets, from the numbers it is called with."""
