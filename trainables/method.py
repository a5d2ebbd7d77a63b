"""The interface of a transfer method: a few functions in a file of `trainables/methods/`.

The training loop knows no method by name. A method is a module with the functions of `Method`;
adding one means adding its file. Its `Transfer` acts while the model is trained.
"""

import importlib
import pkgutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from torch import Tensor, nn

import trainables.methods
from search_spaces.recipe import Recipe
from trainables.errors import InputError


@dataclass(frozen=True, kw_only=True)
class SourceTask:
    """The task that the backbone was trained on, opened for one trial."""

    model: nn.Module
    """The backbone with its pretrained weights and a classifier of the source's classes, on the
    trial's device; the classifier is pretrained too where the weights have one of that size."""
    batch: Callable[[int, int], tuple[Tensor, Tensor]]
    """Gives step (from 0) and batch size B the normalised training images [B, 3, R, R], without
    augmentation, and their labels [B]."""
    train_images: int
    """Images in its training split."""


@dataclass(frozen=True, kw_only=True)
class MethodContext:
    """A trial as its method sees it before the first step."""

    recipe: Recipe
    """The recipe that the model is prepared for."""
    head: str
    """Qualified name of the classifier, which no method may shrink."""
    seed: int
    """Seed of the method's random choices in this trial."""
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
    """A method at work on one model while it is trained; without changes, plain finetuning.

    A method overrides the hooks it needs. The loop calls `attach` once, then `restore` with what
    `prepare` found out or a checkpoint holds; at every step `before_forward`, `penalty`,
    `after_backward` and `after_update`; at every rung `plain_model` and what describes the model.
    Steps count from 0 to `total_steps` - 1. A method whose hooks heed `total_steps`, or whose
    `prepare` heeds the recipe's `target_flops`, says so by `shared_steps`.
    """

    step_flops: float = 0.0
    """Training FLOPs of a step besides those of the model's forward and backward pass, such as a
    policy's; known once attached."""

    def attach(self, model: nn.Module) -> None:
        """Takes hold of the model, in which gradients are on as `trainable_depth` says.

        May switch gradients on and off and parametrise weights (`torch.nn.utils.parametrize`). The
        model's parameters are final from then on.
        """

    def shared_steps(self, *, total_steps: int) -> int:
        """Counts the first steps that are the same in every run of the recipe with more steps.

        Such a run may go on from a state after any of them, so that a step too many makes it wrong
        and one too few only dearer. The count must not fall where `total_steps` rises.
        """
        return total_steps

    def before_forward(self, *, step: int, total_steps: int) -> None:
        """Runs before the batch passes through the model, in one part or, short of memory, more.

        Anything random in the step is drawn here, from a stream of its own.
        """

    def penalty(self, *, step: int, total_steps: int) -> Tensor | None:
        """Returns what is added to the batch's loss, a scalar with a gradient; None for nothing."""
        return None

    def after_backward(self, *, step: int, total_steps: int) -> None:
        """Runs when the gradients are complete and not yet clipped; some may be None."""

    def after_update(self, *, step: int, total_steps: int) -> None:
        """Runs when the optimiser has moved the weights and the average has not followed yet."""

    def hold(self, model: nn.Module) -> None:
        """Sets in place what it holds still in a fresh average, before its statistics are made."""

    def plain_model(self, model: nn.Module) -> nn.Module:
        """Returns the model that is measured, tested and exported at a rung.

        `model` is the average of the trained one, with the same parameters, in eval mode; it is
        trained no further, must stay as it is, and is returned where there is nothing to do.
        Otherwise the result is a copy that has the structure in which `Method.prepare` left the
        backbone, without parametrisations.
        """
        return model

    def updated_params(self, model: nn.Module) -> int:
        """Counts the values of the plain model that may differ from the pretrained ones.

        `model` is the one that is trained.
        """
        return sum(p.numel() for p in model.parameters() if p.requires_grad)

    def zero_shares(self) -> Mapping[str, float]:
        """Share, 0-1, of each weight's values that the last step held at zero, by qualified name.

        Weights that are not named have none. It tells what sparse hardware would save, which is
        reported next to `train_flops` and never part of it.
        """
        return {}

    def tensors(self) -> dict[str, Tensor]:
        """The tensors that `restore` needs besides the model and its optimiser."""
        return {}

    def state(self) -> dict[str, Any]:
        """The rest that `restore` needs, as JSON keeps it."""
        return {}

    def restore(self, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
        """Goes on where the transfer that gave `tensors` and `state` stood.

        A method whose `prepare` finds tensors is also given those, with no state, before the first
        step.
        """


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """The outcome of preparing a model."""

    flops: float
    """Training FLOPs that preparing cost."""
    structure: Mapping[str, Any] = field(default_factory=dict)
    """JSON values that every checkpoint keeps: `transfer` and `reshape` read them."""
    tensors: Mapping[str, Tensor] = field(default_factory=dict)
    """Tensors that the transfer starts from, such as masks, as its `restore` takes them; empty
    where it starts as `attach` leaves it."""


@dataclass(frozen=True, kw_only=True)
class Conditions:
    """The facts about a sweep that are known before any compute is spent."""

    model: nn.Module
    """The backbone with its pretrained weights and a new head. It must stay as it is."""
    source_task: bool
    """Whether the config names the task that the backbone was trained on."""


def _leave_as_it_is(model: nn.Module, context: MethodContext) -> Prepared:
    return Prepared(flops=0.0)


def _keep_shapes(model: nn.Module, structure: Mapping[str, Any], recipe: Recipe) -> None:
    pass


@dataclass(frozen=True, kw_only=True)
class Method:
    """The functions of a method's module, with a default for each that the module may leave out.

    A trial begins with `prepare`; a resumed trial, and an exported model that is loaded, begin with
    `reshape`. Both trials then get their `transfer` in the same way.
    """

    check: Callable[[Recipe, Conditions], None]
    """`check(recipe, conditions)` raises `InputError` for a recipe that makes no sense under these
    conditions."""
    transfer: Callable[[Recipe, Mapping[str, Any]], Transfer]
    """`transfer(recipe, structure)` gives the transfer of a trial whose model was prepared with
    this structure, before `attach` and `restore`."""
    prepare: Callable[[nn.Module, MethodContext], Prepared] = _leave_as_it_is
    """`prepare(model, context)` changes the pretrained model in place before training; all
    gradients are on. Raises `InfeasibleError` when this model cannot be changed as the settings
    ask."""
    reshape: Callable[[nn.Module, Mapping[str, Any], Recipe], None] = _keep_shapes
    """`reshape(model, structure, recipe)` gives a fresh model of the same architecture the shapes
    that `prepare` left; only a method that changes shapes has it."""


def load_method(name: str) -> Method:
    """The method called `name`; raises `InputError` naming those there are."""
    known = sorted(module.name for module in pkgutil.iter_modules(trainables.methods.__path__))
    if name not in known:
        raise InputError(f"method={name!r} is not known; the methods are {', '.join(known)}.")
    module = importlib.import_module(f"trainables.methods.{name}")
    names = (function.name for function in fields(Method))
    return Method(**{name: vars(module)[name] for name in names if name in vars(module)})
