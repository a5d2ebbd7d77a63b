"""TAPS: learning which layers must differ from the pretrained ones (arXiv 2203.16708).

From the paper: a layer's weight is w + 1[s ≥ 0.1] · δ with one score s for each layer, which starts
at 0.15 and learns straight through its gate; δ starts at 0; λ · mean|s| is added to the loss after
a warm-up; norms and the head are the task's own. The recipe's optimiser moves the scores too.

Ours: the budget, a share of the backbone's parameters, norms included and the head left out. The
warm-up, in which all layers move, is the first fifth of the steps (the paper's two epochs may be
more than a budget holds); then layers are open only if they are, of those with s ≥ 0.1, the ones
with the largest s that fit the budget; from half of the steps on the choice stands. A rung within
the warm-up is measured with what would be chosen there. Weight decay pulls δ, and so the weight to
its pretrained value. Biases outside of norms stay. Closing a layer saves no FLOPs and none are
taken off: its gate needs the weight's gradient.

Settings: `budget` in (0, 1], `penalty` (λ) ≥ 0. Budget 1 is plain finetuning, whatever the penalty;
below it, `trainable_depth` must be 1.
"""

from collections.abc import Mapping
from math import ceil
from typing import Any

import torch
from pydantic import Field
from torch import Tensor

from search_spaces.recipe import Recipe
from trainables.mechanisms.deltas import GatedTransfer, check_budget, open_gates
from trainables.method import Conditions, Transfer
from trainables.settings import Settings

FIRST_SCORE = 0.15
OPEN_FROM = 0.1
WARM_UP = 0.2
"""Share of the steps in which every layer moves and no score is pulled down."""
CHOOSING = 0.5
"""Share of the steps after which the choice of layers stands."""


class _Settings(Settings):
    budget: float = Field(gt=0, le=1)
    penalty: float = Field(ge=0)


def check(recipe: Recipe, conditions: Conditions) -> None:
    """Raises `InputError` for settings out of range and a budget that holds no weight."""
    settings = _Settings.read(recipe.settings)
    if settings.budget < 1:
        check_budget(recipe, conditions, budget=settings.budget, per_filter=False)


def transfer(recipe: Recipe, structure: Mapping[str, Any]) -> Transfer:
    """Returns deltas behind gates that learn."""
    settings = _Settings.read(recipe.settings)
    if settings.budget == 1:
        return Transfer()
    return Taps(budget=settings.budget, penalty=settings.penalty)


class Taps(GatedTransfer):
    """Gates of whole layers, whose scores the recipe's optimiser moves."""

    def __init__(self, *, budget: float, penalty: float) -> None:
        GatedTransfer.__init__(self, budget=budget, per_filter=False, score=FIRST_SCORE)
        self._penalty = penalty

    def scores(self) -> Tensor:
        scores = self._scores().detach()
        return scores.where(scores >= OPEN_FROM, -torch.inf)

    def shared_steps(self, *, total_steps: int) -> int:
        return ceil(WARM_UP * total_steps) - 1  # the last step of the warm-up closes layers

    def penalty(self, *, step: int, total_steps: int) -> Tensor | None:
        if self.settled or step < ceil(WARM_UP * total_steps):
            return None
        return self._penalty * self._scores().abs().mean()

    def after_update(self, *, step: int, total_steps: int) -> None:
        if self.settled or step + 1 < ceil(WARM_UP * total_steps):
            return
        open_gates(self.deltas, self.choose())
        self.settled = step + 1 >= ceil(CHOOSING * total_steps)

    def _scores(self) -> Tensor:
        return torch.cat([delta.score.flatten() for delta in self.deltas])
