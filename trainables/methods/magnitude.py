"""Magnitude pruning: the smallest weights of the backbone go, at once or little by little.

After "How Well Do Sparse ImageNet Models Transfer?" (arXiv 2111.13445): unstructured sparsity below
a dense new head, its mask held through transfer, with the head alone trained on features extracted
once (linear) or with more layers (full). The paper transfers backbones that were made sparse on
their source task; making them so here, at the start or during the transfer, is ours.

`one_shot` masks the pretrained weights before the first step, at any depth; the masks hold on
frozen weights too, and `batch_norm_repair` re-estimates the statistics of the batch norms, whose
forward passes count (ours). `gradual` follows the cubic schedule of "To prune, or not to prune"
(arXiv 1710.01878), s_t = s * (1 - (1 - t / n)^3), over the first `ramp` of the steps in
`RAMP_UPDATES` moves at most; the window and the number of moves are ours. It needs
`trainable_depth` 1. A rung that falls into the ramp measures a model compressed to the final
sparsity, with the statistics of the denser one that is trained: no exported model is ever less
sparse than asked, and those of early rungs are worse for it.

Of the N values of all convolutions and linear layers below the head, round(sparsity * N) are zero,
Python's rounding: exactly so after every step of `one_shot` and in every measured model of both.
`scope` ranks values within each layer, all equally sparse to within a value, or over all layers
(`global`); each layer keeps at least one value.

Settings: `sparsity` in [0, 1), `sparsification` (one_shot, gradual), `scope` (layer, global),
`batch_norm_repair` (true, false; of one_shot), `ramp` in (0, 1] (of gradual, which needs it).
Sparsity 0 is plain finetuning, whatever the other settings.
"""

from collections.abc import Mapping
from enum import StrEnum
from math import floor
from typing import Annotated, Any, Self

from pydantic import Field, model_validator
from torch import nn

from search_spaces.recipe import Recipe
from trainables.backbones.layers import backbone_weights
from trainables.mechanisms.batch_norm_repair import repair_batch_norms
from trainables.mechanisms.masks import MaskedTransfer, apply_masks, mask_tensors
from trainables.mechanisms.scheduled_sparsity import ScheduledSparsity
from trainables.mechanisms.sparsity import SparsityScope, check_sparsity, keep_largest
from trainables.method import Conditions, MethodContext, Prepared, Transfer
from trainables.settings import Settings, check_depth

RAMP_UPDATES = 20
"""Moves of the masks on the way to the final sparsity, where there are as many steps."""


class Sparsification(StrEnum):
    """The time at which the weights go."""

    ONE_SHOT = "one_shot"
    """All before the first step."""
    GRADUAL = "gradual"
    """Little by little, many at first."""


class _Settings(Settings):
    sparsity: float = Field(ge=0, lt=1)
    sparsification: Annotated[Sparsification, Field(strict=False)] = Sparsification.ONE_SHOT
    scope: Annotated[SparsityScope, Field(strict=False)] = SparsityScope.LAYER
    batch_norm_repair: bool = False
    ramp: float | None = Field(default=None, gt=0, le=1)

    @model_validator(mode="after")
    def _belong_together(self) -> Self:
        if self.gradual and self.sparsity > 0 and self.ramp is None:
            raise ValueError("sparsification='gradual' needs a ramp, the share of the steps it has")
        if self.gradual and self.batch_norm_repair:
            raise ValueError(
                "batch_norm_repair=True must be false with sparsification='gradual', in which "
                "training itself moves the statistics"
            )
        if not self.gradual and self.ramp is not None:
            raise ValueError(f"ramp={self.ramp!r} must be left out with one_shot, which has none")
        return self

    @property
    def gradual(self) -> bool:
        return self.sparsification is Sparsification.GRADUAL


def check(recipe: Recipe, conditions: Conditions) -> None:
    """Raises `InputError` for settings, a depth below 1 of `gradual`, and a model that cannot be
    that sparse."""
    settings = _Settings.read(recipe.settings)
    if settings.sparsity == 0:
        return
    if settings.gradual:
        check_depth(recipe, low=1.0, high=1.0, instead="choose one_shot where layers are frozen")
    check_sparsity(conditions.model, settings.sparsity)


def prepare(model: nn.Module, context: MethodContext) -> Prepared:
    """Masks the weights, where they go at once, and repairs batch norms where asked.

    The repair alone costs something, its forward passes.
    """
    settings = _Settings.read(context.recipe.settings)
    if settings.sparsity == 0 or settings.gradual:
        return Prepared(flops=0.0)
    magnitudes = {name: w.detach().abs() for name, w in backbone_weights(model).items()}
    masks = keep_largest(magnitudes, sparsity=settings.sparsity, scope=settings.scope)
    apply_masks(model, masks)
    flops = repair_batch_norms(model, context) if settings.batch_norm_repair else 0.0
    return Prepared(flops=flops, tensors=mask_tensors(masks))


def transfer(recipe: Recipe, structure: Mapping[str, Any]) -> Transfer:
    """Returns a transfer whose masks stay, or follow the ramp."""
    settings = _Settings.read(recipe.settings)
    if settings.sparsity == 0:
        return Transfer()
    if settings.ramp is None:
        return MaskedTransfer()
    share = _Cubic(settings.ramp)
    return ScheduledSparsity(share, sparsity=settings.sparsity, scope=settings.scope)


class _Cubic:
    """The share of the final sparsity after each step's move, 1 from the ramp's end on."""

    def __init__(self, ramp: float) -> None:
        self._ramp = ramp

    def __call__(self, step: int, total_steps: int) -> float:
        passed = min(1.0, (step + 1) / (self._ramp * total_steps))
        return 1 - (1 - floor(passed * RAMP_UPDATES) / RAMP_UPDATES) ** 3
