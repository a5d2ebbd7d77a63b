"""Soft threshold reparametrisation: every layer learns below which size its weights are zero.

From the paper (arXiv 2002.03231): w = sign(v) ReLU(|v| - g(s)) with one learned s a layer, trained
by the gradient together with v, so that the layers share out the sparsity among themselves; weight
decay on s drives the thresholds up. The final sparsity is therefore not asked for but found, and
reported.

Ours, for a transfer of a few hundred steps from pretrained weights: g is in units of the layer's
mean |v| at the start, because layers differ in scale, g(s) = mean |v| e^(level + s), with s = 0 at
first. In place of weight decay on s, which the recipe's optimisers do not apply to vectors and
which would push differently at each learning rate, `level` goes from log `initial_threshold` to log
`final_threshold` over the first three quarters of the steps: each layer learns its deviation from
it. Norms, biases and head have no threshold.

Settings, in units of a layer's mean |v|: `initial_threshold` and `final_threshold` in [0, 4], the
first at most the second. With both 0 it is plain finetuning; else both are above 0. A threshold of
1 makes some 60 % of a layer zero, of 2 some 87 %, of 3 some 95 %, before anything is learned.
`trainable_depth` must be 1.
"""

from collections.abc import Mapping
from copy import deepcopy
from math import log
from typing import Annotated, Any, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from search_spaces.recipe import Recipe
from trainables.mechanisms.reparametrization import (
    merge,
    originals,
    parametrizations,
    reparametrize,
)
from trainables.mechanisms.sparsity import check_sparsity
from trainables.method import Conditions, Transfer
from trainables.settings import Settings, check_depth

RISE = 0.75
"""Share of the steps over which the level rises."""
COUNT_PERIOD = 16
"""Steps between counts of the zeros that a step's theoretical FLOPs are about."""

_Threshold = Annotated[float, Field(ge=0, le=4)]


class _Settings(Settings):
    initial_threshold: _Threshold
    final_threshold: _Threshold

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        initial, final = self.initial_threshold, self.final_threshold
        if initial > final or (initial == 0) != (final == 0):
            raise ValueError(
                f"initial_threshold={initial:g} and final_threshold={final:g} must both be 0, "
                "which means no threshold, or both above it and the first at most the second"
            )
        return self


def check(recipe: Recipe, conditions: Conditions) -> None:
    """Raises `InputError` for settings out of range, a depth below 1, and no weights to prune."""
    _Settings.read(recipe.settings)
    check_depth(recipe, low=1.0, high=1.0, instead="all layers learn a threshold")
    check_sparsity(conditions.model, 0.0)


def transfer(recipe: Recipe, structure: Mapping[str, Any]) -> Transfer:
    """Returns a transfer that learns the thresholds."""
    settings = _Settings.read(recipe.settings)
    if settings.initial_threshold == 0:
        return Transfer()
    return SoftThresholding(
        initial_threshold=settings.initial_threshold, final_threshold=settings.final_threshold
    )


class SoftThreshold(nn.Module):
    """w = sign(v) ReLU(|v| - threshold)."""

    def __init__(self, weight: Tensor, *, level: float) -> None:
        """`level` is the logarithm of the threshold in units of the mean size of `weight`."""
        super().__init__()
        self.scale: Tensor
        self.level: Tensor
        self.register_buffer("scale", weight.abs().mean())
        self.register_buffer("level", torch.full_like(self.scale, level))
        self.s = nn.Parameter(torch.zeros(1, device=weight.device))

    @property
    def threshold(self) -> Tensor:
        """Size [1] below which values are zero."""
        return self.scale * (self.level + self.s).exp()

    def forward(self, v: Tensor) -> Tensor:
        """The weight."""
        return v.sign() * (v.abs() - self.threshold).relu()


class SoftThresholding(Transfer):
    """Trains one threshold for each layer with the weights; the plain model has the zeros found.

    In a run of more steps the level rises more slowly, from the first step on.
    """

    def __init__(self, *, initial_threshold: float, final_threshold: float) -> None:
        self._initial = log(initial_threshold)
        self._final = log(final_threshold)
        self._zero_shares: dict[str, float] = {}

    def attach(self, model: nn.Module) -> None:
        reparametrize(model, lambda weight: SoftThreshold(weight, level=self._initial))
        self._model = model

    def shared_steps(self, *, total_steps: int) -> int:
        return 0

    def before_forward(self, *, step: int, total_steps: int) -> None:
        risen = min(1.0, (step + 1) / (RISE * total_steps))
        level = self._initial + risen * (self._final - self._initial)
        for part in parametrizations(self._model).values():
            part.get_buffer("level").fill_(level)
        if step % COUNT_PERIOD == 0:
            values, zeros = originals(self._model), _zeros(self._model)
            self._zero_shares = {name: zeros[name] / v.numel() for name, v in values.items()}

    def plain_model(self, model: nn.Module) -> nn.Module:
        plain = deepcopy(model)
        merge(plain)
        return plain

    def updated_params(self, model: nn.Module) -> int:
        """Counts the plain model's values without those that are zero in the trained model now."""
        zeros = _zeros(model)
        thresholds = len(zeros)
        return super().updated_params(model) - thresholds - sum(zeros.values())

    def zero_shares(self) -> Mapping[str, float]:
        """Returns the shares as last counted, `COUNT_PERIOD` steps ago at most."""
        return self._zero_shares

    def state(self) -> dict[str, Any]:
        return {"zero_shares": self._zero_shares}

    def restore(self, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
        self._zero_shares = dict(state["zero_shares"])


@torch.no_grad()
def _zeros(model: nn.Module) -> dict[str, int]:
    """Counts the values of each weight that its threshold makes zero."""
    values = originals(model)
    counts = [(part(values[n]) == 0).sum() for n, part in parametrizations(model).items()]
    return dict(zip(values, torch.stack(counts).tolist(), strict=True))
