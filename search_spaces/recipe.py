"""The recipe: one point of the search space, and everything a trial must know to run it."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from types import MappingProxyType
from typing import Any

Setting = str | int | float | bool


class InvalidRecipeError(ValueError):
    """A recipe's value breaks its rule; the message names the value, the rule and the mend."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How one trial transfers the backbone to the task.

    Immutable and serialisable; equal recipes have equal `recipe_id`s on every machine.
    """

    method: str
    """Name of the transfer method, a file in `trainables/methods/`."""
    settings: Mapping[str, Setting] = field(default_factory=dict)
    """The method's own settings (for filter pruning: ratio, criterion, width rule, scope)."""
    learning_rate: float
    """Peak learning rate of the head; layers below it are scaled by `layer_decay`."""
    weight_decay: float
    """L2 decay of the weights; norms and biases have none."""
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

    def __post_init__(self) -> None:
        object.__setattr__(self, "settings", MappingProxyType(dict(sorted(self.settings.items()))))
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
        )
        for name, holds, rule in rules:
            if not holds:
                raise InvalidRecipeError(f"{name}={getattr(self, name)!r} {rule}.")

    @property
    def recipe_id(self) -> str:
        """Twelve hex digits that depend on the recipe's content alone."""
        canonical = json.dumps(self.to_dict(), sort_keys=True)
        return hashlib.sha256(canonical.encode()).hexdigest()[:12]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types, `settings` nested."""
        shallow = {f.name: getattr(self, f.name) for f in fields(self)}
        return shallow | {"settings": dict(self.settings)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Recipe":
        """The recipe whose `to_dict` gave `values`; unknown or missing names raise."""
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
        """One level of names, the method's settings beside the shared fields."""
        values = self.to_dict()
        settings = values.pop("settings")
        return {**values, **settings}
