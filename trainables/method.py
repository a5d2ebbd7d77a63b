"""What a transfer method must offer: a few functions in a file of `trainables/methods/`.

The training loop knows no method by name. A method is a module with the functions of `Method`;
adding one is adding its file. What a method does while the model is trained is its `Transfer`.
"""

import importlib
import pkgutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, cast

from torch import Tensor, nn

import trainables.methods
from search_spaces.recipe import Recipe
from trainables.errors import InputError
from trainables.mechanisms.source_task import SourceTask


@dataclass(frozen=True, kw_only=True)
class MethodContext:
    """What a method may use beside the model."""

    recipe: Recipe
    """What the model is prepared for."""
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
    fresh: Callable[[], nn.Module]
    """Builds the same architecture with random weights, its head as that of the model."""
    source_task: Callable[[], SourceTask] | None
    """Opens the task that the backbone was trained on; None where the config names none."""


class Transfer:
    """A method at work on one model while it is trained; as it stands, plain finetuning.

    A method overrides what it needs. The loop calls `attach` once, then `restore` if the trial is
    resumed; at every step `begin_step`, `penalty`, `before_step` and `after_step`; at every rung
    `finished` and what describes the model. Steps count from 0 to `total_steps` - 1.
    """

    step_flops: float = 0.0
    """Training FLOPs of a step beside those of the model's forward and backward pass, such as a
    policy's; known once attached."""

    def attach(self, model: nn.Module) -> None:
        """Takes hold of the model, in which gradients are on as `trainable_depth` says.

        May switch gradients on and off and parametrise weights (`torch.nn.utils.parametrize`). The
        model's parameters are final from then on.
        """

    def begin_step(self, *, step: int, total_steps: int) -> None:
        """The batch is about to pass through the model, in one part or, short of memory, more.

        What is random in the step is drawn here, from a stream of its own.
        """

    def penalty(self, *, step: int, total_steps: int) -> Tensor | None:
        """What is added to the loss of the batch, a scalar with a gradient."""
        return None

    def before_step(self, *, step: int, total_steps: int) -> None:
        """The gradients are complete and not yet clipped; a parameter without one has None."""

    def after_step(self, *, step: int, total_steps: int) -> None:
        """The optimiser has moved the weights, and the average has not followed yet."""

    def hold(self, model: nn.Module) -> None:
        """Sets in place what it holds still in a fresh average, before its statistics are made."""

    def finished(self, model: nn.Module) -> nn.Module:
        """The model that counts: what is measured, tested and exported at a rung.

        `model` is the average of the trained one, with the same parameters, in eval mode; it is
        trained no further, must stay as it is, and is returned where there is nothing to do.
        Otherwise a copy of the backbone's plain structure, as `Method.rebuild` leaves it.
        """
        return model

    def updated_params(self, model: nn.Module) -> int:
        """How many values of the finished model may differ from the pretrained ones.

        `model` is the one that is trained.
        """
        return sum(p.numel() for p in model.parameters() if p.requires_grad)

    def zero_shares(self) -> Mapping[str, float]:
        """Share, 0-1, of each weight's values that the last step held at zero, by qualified name.

        Weights that are not named have none. For what sparse hardware would save, which is
        reported beside `train_flops` and never part of it.
        """
        return {}

    def tensors(self) -> dict[str, Tensor]:
        """What `restore` needs beside the model and its optimiser."""
        return {}

    def state(self) -> dict[str, Any]:
        """The rest of it, as JSON keeps it."""
        return {}

    def restore(self, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
        """Goes on where the transfer that gave `tensors` and `state` stood."""


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """What preparing did."""

    flops: float
    """Training FLOPs it cost."""
    structure: Mapping[str, Any] = field(default_factory=dict)
    """JSON values from which `rebuild` gives a fresh backbone the prepared structure."""
    transfer: Transfer = field(default_factory=Transfer)
    """What goes on while the model is trained."""


@dataclass(frozen=True, kw_only=True)
class Conditions:
    """What is known of a sweep before any compute is spent."""

    model: nn.Module
    """The backbone with its pretrained weights and a new head. It must stay as it is."""
    source_task: bool
    """Whether the config names the task that the backbone was trained on."""


class Method(Protocol):
    """The functions of a method's module."""

    def check(self, recipe: Recipe, conditions: Conditions) -> None:
        """Raises `InputError` for a recipe that makes no sense under these conditions."""

    def prepare(self, model: nn.Module, context: MethodContext) -> Prepared:
        """Changes the pretrained model in place before training; all gradients are on.

        Raises `InfeasibleError` when this model cannot be changed as the settings ask.
        """

    def rebuild(self, model: nn.Module, structure: Mapping[str, Any], recipe: Recipe) -> Transfer:
        """Gives a fresh model of the same architecture the structure that `prepare` left.

        Returns the transfer of a trial that is to be resumed, before `attach` and `restore`.
        """


def load_method(name: str) -> Method:
    """The method called `name`; raises `InputError` naming those there are."""
    known = sorted(module.name for module in pkgutil.iter_modules(trainables.methods.__path__))
    if name not in known:
        raise InputError(f"method={name!r} is not known; the methods are {', '.join(known)}.")
    return cast(Method, importlib.import_module(f"trainables.methods.{name}"))
