"""The recipe: one point of the search space, and everything a trial must know to run it."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields
from enum import StrEnum
from math import inf
from types import MappingProxyType
from typing import Any

from trainables.errors import UserError

Setting = str | int | float | bool


class Optimizer(StrEnum):
    """Optimisers, which make a step of a gradient."""

    SGD = "sgd"
    """With Nesterov momentum."""
    ADAMW = "adamw"
    """Adam with decoupled weight decay (arXiv 1711.05101)."""
    SCHEDULE_FREE_ADAMW = "schedule_free_adamw"
    """AdamW that averages in place of a schedule (arXiv 2405.15682)."""


class Schedule(StrEnum):
    """Learning-rate schedules after the linear warm-up."""

    CONSTANT = "constant"
    """It stays at its peak."""
    COSINE = "cosine"
    """To zero on half a cosine."""
    LINEAR = "linear"
    """To zero on a line."""
    WARMUP_STABLE_DECAY = "warmup_stable_decay"
    """It stays at its peak, then falls to zero over the last fifth of the steps."""


class InvalidRecipeError(UserError):
    """A recipe's value breaks its rule; the message names the value, the rule and the mend."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A recipe of how one trial transfers the backbone to the task.

    Immutable and serialisable; equal recipes have equal `recipe_id`s on every machine.
    """

    method: str
    """Name of the transfer method, a file in `trainables/methods/`."""
    settings: Mapping[str, Setting] = field(default_factory=dict)
    """The method's own settings (for filter pruning: ratio, criterion, width rule, scope)."""
    learning_rate: float
    """Peak learning rate of the head; layers below it are scaled by `layer_decay`."""
    weight_decay: float
    """Decay of the weights, in SGD as an L2 penalty, in AdamW decoupled; norms, biases and other
    vectors have none."""
    batch_size: int
    """Images a step."""
    label_smoothing: float
    """Share of the target spread evenly over the classes, in [0, 1)."""
    layer_decay: float
    """Factor on the learning rate for each layer group further from the head, in (0, 1]."""
    trainable_depth: float
    """Share of the layer groups that are trained, counted from the head: 0 head only, 1 all."""
    resolution: int
    """Side of the square input in pixels."""
    augmentation: float
    """Strength of the augmentation, in [0, 1]; 0 means none."""
    target_flops: float
    """Training FLOPs that the learning-rate schedule aims at; the trial ends there."""
    optimizer: Optimizer = Optimizer.SGD
    schedule: Schedule = Schedule.COSINE
    """`constant` with a schedule-free optimiser, which needs no other."""
    clip_norm: float = 0.0
    """Global norm that a step's gradient is scaled down to; 0 means it is never clipped."""
    mixup: float = 0.0
    """Mixup's strength: an image keeps a share of itself from Beta(mixup, mixup); 0 means none."""
    cutmix: float = 0.0
    """CutMix's strength, likewise; with mixup as well, each step tosses a coin for one."""
    class_weighting: float = 0.0
    """Exponent k in [0, 1]: an image of a class with n training images weighs n^-k in the loss; 0
    counts images alike, 1 classes."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "settings", MappingProxyType(dict(sorted(self.settings.items()))))
        object.__setattr__(self, "optimizer", _member(Optimizer, "optimizer", self.optimizer))
        object.__setattr__(self, "schedule", _member(Schedule, "schedule", self.schedule))
        for name in self.settings:
            if name in {f.name for f in fields(self)}:
                raise InvalidRecipeError(
                    f"settings.{name}={self.settings[name]!r} has the name of a field that every "
                    "recipe has; give the method's setting another."
                )
        rules: tuple[tuple[str, bool, str], ...] = (
            ("learning_rate", self.learning_rate > 0, "must be positive"),
            ("weight_decay", self.weight_decay >= 0, "must not be negative; 0 means none"),
            ("batch_size", self.batch_size >= 1, "must be at least 1 image"),
            ("label_smoothing", 0 <= self.label_smoothing < 1, "must lie in [0, 1); 0 means none"),
            ("layer_decay", 0 < self.layer_decay <= 1, "must lie in (0, 1]; 1 means none"),
            (
                "trainable_depth",
                0 <= self.trainable_depth <= 1,
                "must lie in [0, 1]; 0 trains the head only, 1 everything",
            ),
            ("resolution", self.resolution >= 8, "must be at least 8 pixels"),
            ("augmentation", 0 <= self.augmentation <= 1, "must lie in [0, 1]; 0 means none"),
            ("target_flops", self.target_flops > 0, "must be positive"),
            (
                "schedule",
                self.schedule is Schedule.CONSTANT
                or self.optimizer is not Optimizer.SCHEDULE_FREE_ADAMW,
                "must be 'constant' with a schedule-free optimizer",
            ),
            ("clip_norm", self.clip_norm >= 0, "must not be negative; 0 means no clipping"),
            ("mixup", 0 <= self.mixup < inf, "must be finite and not negative; 0 means none"),
            ("cutmix", 0 <= self.cutmix < inf, "must be finite and not negative; 0 means none"),
            (
                "class_weighting",
                0 <= self.class_weighting <= 1,
                "must lie in [0, 1]; 0 counts images alike, 1 classes",
            ),
        )
        for name, holds, rule in rules:
            if not holds:
                value = getattr(self, name)
                shown = value.value if isinstance(value, StrEnum) else value
                raise InvalidRecipeError(f"{name}={shown!r} {rule}.")

    @property
    def recipe_id(self) -> str:
        """Twelve hex digits that depend on the recipe's content alone.

        What is at its default is left out, so that a new field with a default renames no recipe.
        """
        values = self.to_dict()
        for f in fields(self):
            if f.default is not MISSING and values[f.name] == f.default:
                del values[f.name]
        canonical = json.dumps(values, sort_keys=True)
        return hashlib.sha256(canonical.encode()).hexdigest()[:12]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types, `settings` nested."""
        shallow = {f.name: getattr(self, f.name) for f in fields(self)}
        return shallow | {
            "settings": dict(self.settings),
            "optimizer": self.optimizer.value,
            "schedule": self.schedule.value,
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Recipe":
        """The recipe whose `to_dict` gave `values`; unknown or missing names raise.

        Fields with a default may be missing: an older recipe had no choice but the default.
        """
        known = {f.name for f in fields(cls)}
        if unknown := sorted(set(values) - known):
            raise InvalidRecipeError(
                f"A recipe has no field {unknown[0]!r}; its fields are {', '.join(sorted(known))}."
            )
        try:
            return cls(**values)
        except TypeError as error:
            raise InvalidRecipeError(f"The recipe is incomplete: {error}.") from error

    def flat(self) -> dict[str, Setting]:
        """One level of names, the method's settings next to the shared fields."""
        values = self.to_dict()
        settings = values.pop("settings")
        return {**values, **settings}


def _member(kind: type[StrEnum], name: str, value: str) -> StrEnum:
    """The enum's member, from its value as JSON has it."""
    try:
        return kind(value)
    except ValueError:
        raise InvalidRecipeError(f"{name}={value!r} must be one of {', '.join(kind)}.") from None
