"""Examples of every method: what the contract test trains, and what a method's own tests vary.

A method states its examples once, as `EXAMPLES` in the file of its name in `examples/`.
"""

import functools
import importlib
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any

import torch
from torch import nn

import trainables.methods
from search_spaces.problem import Problem
from search_spaces.recipe import Optimizer, Recipe, Schedule, Setting
from tests.trainables.methods import examples
from tests.trainables.recipes import LEVELS, SMALL, make_recipe, make_trial
from trainables.backbones import build as backbones
from trainables.backbones.state import Weights
from trainables.finetune import Finetuning
from trainables.images.store import ImageStore
from trainables.method import Conditions, load_method
from trainables.rungs import rung_levels

LATER = rung_levels(min_flops=5e8, max_flops=1e9, per_decade=10)
"""Rungs at which a schedule-free average has settled."""
OPTIMIZERS: dict[str, dict[str, Any]] = {
    "sgd": {"weight_decay": 1e-2, "clip_norm": 0.1},
    "adamw": {"optimizer": Optimizer.ADAMW, "weight_decay": 0.1, "mixup": 0.2},
    "schedule_free": {
        "optimizer": Optimizer.SCHEDULE_FREE_ADAMW,
        "schedule": Schedule.CONSTANT,
    },
}
"""Fields of a recipe by which each optimiser moves weights that have no gradient."""
PROBLEM = Problem(
    rungs=(1e9, 2e9),
    native_resolution=16,
    train_images=96,
    classes=4,
    source_task=True,
    sparse_backbone=True,
)
"""The digits as a search space sees them, with all that any method may need."""


@functools.cache
def pretrained() -> Weights:
    """Weights that stand for pretrained ones: random, and the same at every call."""
    with torch.random.fork_rng():
        torch.manual_seed(11)
        return MappingProxyType(backbones.build(SMALL, num_classes=7).state_dict())


@functools.cache
def backbone(weights: Callable[[], Weights]) -> nn.Module:
    """The small backbone with these weights and a new head; it must stay as it is."""
    model = backbones.build(SMALL, num_classes=4)
    backbones.load_into(model, weights(), source=SMALL)
    return model


@dataclass(frozen=True, kw_only=True)
class MethodExample:
    """A recipe of a method and what it is run on, small enough for a test."""

    method: str
    settings: Mapping[str, Setting] = field(default_factory=dict)
    changes: Mapping[str, Any] = field(default_factory=dict)
    """Other fields in which the recipe differs from `make_recipe`'s."""
    levels: tuple[float, ...] = LEVELS
    """Rungs, three at least, of which the recipe aims at the last."""
    weights: Callable[[], Weights] = pretrained
    """Gives the backbone's weights."""
    source_task: bool = False
    """Whether the method needs the task that the backbone was trained on."""

    def but(
        self,
        *,
        settings: Mapping[str, Setting] | None = None,
        levels: tuple[float, ...] | None = None,
        **changes: Any,
    ) -> "MethodExample":
        """The example with some settings, its rungs or fields of its recipe changed."""
        return replace(
            self,
            settings={**self.settings, **(settings or {})},
            levels=levels or self.levels,
            changes={**self.changes, **changes},
        )

    def recipe(self) -> Recipe:
        """The recipe."""
        values = {"target_flops": self.levels[-1], **self.changes}
        return make_recipe(method=self.method, settings=self.settings, **values)

    def trial(
        self,
        store: ImageStore,
        *,
        source_task: Callable[[], ImageStore] | None = None,
        resume_from: str | None = None,
        continue_from: str | None = None,
    ) -> Finetuning:
        """The recipe on `store`, set up and not yet trained."""
        return make_trial(
            store,
            self.recipe(),
            weights=self.weights(),
            levels=self.levels,
            source_task=source_task,
            resume_from=resume_from,
            continue_from=continue_from,
        )

    def check(self, model: nn.Module | None = None) -> None:
        """The method's own check of the recipe, on its backbone or another model."""
        conditions = Conditions(model=model or backbone(self.weights), source_task=self.source_task)
        load_method(self.method).check(self.recipe(), conditions)


@dataclass(frozen=True, kw_only=True)
class MethodExamples:
    """Everything that the contract test must be told about a method."""

    trained: Mapping[str, MethodExample]
    """Examples by name, each of which is trained, resumed and exported."""
    off: Mapping[str, MethodExample] = field(default_factory=dict)
    """Examples in which the method is switched off; none where it cannot be."""
    refused_depths: tuple[float, ...] = ()
    """Values of `trainable_depth` at which the first of `trained` is refused."""
    needed: tuple[str, ...] = ()
    """Settings without a default."""
    needs_weights: bool = False
    """Whether a model without convolutions and linear layers below its head is refused."""
    smaller: Mapping[str, Setting] = field(default_factory=dict)
    """Settings below what the method's space draws, for a trial that a test can pay for."""


def with_every_optimizer(
    example: MethodExample, *, free_levels: tuple[float, ...] | None = None
) -> dict[str, MethodExample]:
    """The example once for each of `OPTIMIZERS`, under that name.

    `free_levels` are rungs for the schedule-free one, which pays for its statistics at each.
    """
    return {
        name: example.but(levels=free_levels if name == "schedule_free" else None, **changes)
        for name, changes in OPTIMIZERS.items()
    }


def method_names() -> list[str]:
    """All methods."""
    return [module.name for module in pkgutil.iter_modules(trainables.methods.__path__)]


def names_with_examples() -> list[str]:
    """All files of `examples`."""
    return [module.name for module in pkgutil.iter_modules(examples.__path__)]


def trained_examples() -> list[tuple[str, str]]:
    """Lists the names of the method and the example of all that are trained."""
    return [(method, n) for method in names_with_examples() for n in examples_of(method).trained]


def examples_of(method: str) -> MethodExamples:
    """The method's examples."""
    module = importlib.import_module(f"{examples.__name__}.{method}")
    found: MethodExamples = module.EXAMPLES
    return found
