"""LoRA: low-rank updates of frozen weights, which merge into them (arXiv 2106.09685).

From the paper: a weight is w + alpha / rank · B A with A [rank, n] random, B [m, rank] zero at
first and w frozen; merged, inference costs what the backbone's does.

Ours, for convolutions: the matrix is the weight [out, in, k, k] with a row for each output channel
and all else in columns, so that grouped and depthwise convolutions are adapted and merged like any
other; no rank is above the matrix's own. Every convolution and linear layer below the head is
adapted. The head is trained, biases outside of norms are not, and `norms` says whether norms are
trained. Weight decay on A and B pulls the weight to its pretrained value; a single row or column is
a vector and has none. `updated_params` counts the values of A, B, norms and head.

The products B A and their gradients are counted, once a step. Convolutions cost what they cost in
full finetuning, weight gradients included, because those lead to A and B: LoRA saves storage, no
FLOPs.

With `torch.nn.utils.parametrize` and not with the library `peft`: its version 0.21.2 refuses
grouped convolutions whose groups do not divide the rank (depthwise ones at any rank below their
width) and cannot merge those that it takes; it brings transformers and accelerate, 150 MB and two
seconds of every import.

Settings: `rank` ≥ 0, `alpha` > 0, `norms` (true, false). Rank 0 is plain finetuning, whatever the
others; above it, `trainable_depth` must be 1.
"""

from collections.abc import Mapping
from copy import deepcopy
from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn

from search_spaces.recipe import Recipe
from trainables.backbones.layers import backbone_weights
from trainables.errors import InputError
from trainables.learning.freezing import train_norms_and_head
from trainables.mechanisms.reparametrization import merge, reparametrize
from trainables.method import Conditions, MethodContext, Prepared, Transfer
from trainables.seeds import generator
from trainables.settings import Settings, check_depth


class _Settings(Settings):
    rank: int = Field(ge=0)
    alpha: float = Field(gt=0)
    norms: bool


def check(recipe: Recipe, conditions: Conditions) -> None:
    """Raises `InputError` for settings out of range and a model with nothing to adapt."""
    if _Settings.read(recipe.settings).rank == 0:
        return
    check_depth(recipe, low=1.0, high=1.0, instead="every layer is adapted")
    if not backbone_weights(conditions.model):
        raise InputError(
            "lora adapts convolutions and linear layers below the head, and "
            f"{type(conditions.model).__name__} has none; choose another method."
        )


def prepare(model: nn.Module, context: MethodContext) -> Prepared:
    """Leaves the model as it is and notes the seed of the adapters."""
    return Prepared(flops=0.0, structure={"seed": context.seed})


def transfer(recipe: Recipe, structure: Mapping[str, Any]) -> Transfer:
    """Returns the adapters, whose seed `prepare` noted."""
    settings = _Settings.read(recipe.settings)
    if settings.rank == 0:
        return Transfer()
    return Lora(
        rank=settings.rank, alpha=settings.alpha, norms=settings.norms, seed=structure["seed"]
    )


class LowRankUpdate(nn.Module):
    """Makes a weight of the pretrained one: w₀ + scale · up · down, up = 0 at first."""

    def __init__(self, weight: Tensor, *, rank: int, scale: float, draws: torch.Generator) -> None:
        """`weight` [out, ...] is the pretrained one; `down` is drawn as a linear layer's weight."""
        nn.Module.__init__(self)
        rows, columns = len(weight), weight[0].numel()
        rank = min(rank, rows, columns)
        uniform = torch.rand(rank, columns, generator=draws) * 2 - 1
        self.down = nn.Parameter((uniform / columns**0.5).to(weight))
        self.up = nn.Parameter(weight.new_zeros(rows, rank))
        self.scale = scale

    def forward(self, pretrained: Tensor) -> Tensor:
        return pretrained + self.scale * (self.up @ self.down).view(pretrained.shape)


class Lora(Transfer):
    """Adapters on every weight below the head."""

    def __init__(self, *, rank: int, alpha: float, norms: bool, seed: int) -> None:
        self._rank = rank
        self._scale = alpha / rank
        self._norms = norms
        self._seed = seed

    def attach(self, model: nn.Module) -> None:
        train_norms_and_head(model, norms=self._norms)
        draws = generator(self._seed, "adapters")
        reparametrize(
            model, lambda w: LowRankUpdate(w, rank=self._rank, scale=self._scale, draws=draws)
        )

    def plain_model(self, model: nn.Module) -> nn.Module:
        plain = deepcopy(model)
        merge(plain)
        return plain
