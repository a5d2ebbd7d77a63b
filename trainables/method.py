"""What a transfer method must offer: a few functions in a file of `trainables/methods/`.

The training loop knows no method by name. A method is a module with the functions of `Method`;
adding one is adding its file.
"""

import importlib
import pkgutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, cast

from torch import Tensor, nn

import trainables.methods
from search_spaces.recipe import Setting
from trainables.errors import InputError


@dataclass(frozen=True, kw_only=True)
class MethodContext:
    """What a method may use beside the model."""

    settings: Mapping[str, Setting]
    """The recipe's settings for this method."""
    resolution: int
    """Side of the input in pixels."""
    head: str
    """Qualified name of the classifier, which no method may shrink."""
    seed: int
    """For this trial's random choices."""
    calibration: Callable[[int], Iterator[Tensor]]
    """Yields normalised training images, [B, 3, R, R], without labels or augmentation; at most
    the given number in all, at least 2 a batch."""
    labelled: Callable[[int], Iterator[tuple[Tensor, Tensor]]]
    """Yields the same images as `calibration`, at most the given number in all, with their labels
    [B]; in batches small enough to differentiate."""
    forward_flops: Callable[[], float]
    """FLOPs of one image's forward pass through the model as it is when called."""
    train_flops: Callable[[], float]
    """FLOPs of one image's forward and backward pass through the model as it is when called, with
    the gradients that are switched on then."""
    width_multiple: int
    """Widths that the device computes well are multiples of this; 1 where any is as good."""


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """What preparing did."""

    flops: float
    """Training FLOPs it cost."""
    structure: Mapping[str, Any] = field(default_factory=dict)
    """JSON values from which `rebuild` gives a fresh backbone the prepared structure."""


class Method(Protocol):
    """The functions of a method's module."""

    def check(self, settings: Mapping[str, Setting]) -> None:
        """Raises `InputError` for settings that make no sense for any model."""

    def prepare(self, model: nn.Module, context: MethodContext) -> Prepared:
        """Changes the pretrained model in place before training.

        Raises `InfeasibleError` when this model cannot be changed as the settings ask.
        """

    def rebuild(
        self, model: nn.Module, structure: Mapping[str, Any], context: MethodContext
    ) -> None:
        """Gives a fresh model of the same architecture the structure that `prepare` left."""


def load_method(name: str) -> Method:
    """The method called `name`; raises `InputError` naming those there are."""
    known = sorted(module.name for module in pkgutil.iter_modules(trainables.methods.__path__))
    if name not in known:
        raise InputError(f"method={name!r} is not known; the methods are {', '.join(known)}.")
    return cast(Method, importlib.import_module(f"trainables.methods.{name}"))
