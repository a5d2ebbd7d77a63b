"""Powerpropagation: weights that are powers, so that large ones learn faster, then pruned.

From the paper (arXiv 2110.00296): w = theta |theta|^(alpha - 1), with theta starting at
sign(u) |u|^(1 / alpha) for the weight u, so that the network begins as it was; then the weights
of least magnitude are pruned. Ours: u is pretrained; pruning is one cut over all layers together,
after a share of the steps, and the rest is trained on under the mask; norms, biases and head are
neither reparametrised nor pruned. Weight decay acts on theta, as it does in any optimiser, which
shrinks w alpha times as fast. At step 0 the weights equal the backbone's but for rounding, 1e-6 of
their size. A weight of exactly zero has no gradient while alpha is above 1, and stays.

A rung before the cut measures and exports the model as the cut would leave it, at once and without
further training: every model that a sweep compares is as sparse as asked.

Settings: `alpha` in [1, 5]; `sparsity` in [0, 1), the share of the weights below the head that go;
`prune_at` in [0, 1], the share of the steps before the cut, where 1 never trains the pruned model
(0.5 unless given). With alpha 1 and sparsity 0 it is plain finetuning. `trainable_depth` must be 1.
"""

from collections.abc import Mapping
from copy import deepcopy
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor, nn

from search_spaces.recipe import Recipe
from trainables.backbones.layers import backbone_weights
from trainables.mechanisms.masks import MaskedTransfer, Masks
from trainables.mechanisms.reparametrization import merge, originals, reparametrize
from trainables.mechanisms.sparsity import SparsityScope, check_sparsity, keep_largest, kept_values
from trainables.method import Conditions, Transfer
from trainables.settings import Settings, check_depth


class _Settings(Settings):
    alpha: Annotated[float, Field(ge=1, le=5)]
    sparsity: Annotated[float, Field(ge=0, lt=1)]
    prune_at: Annotated[float, Field(ge=0, le=1)] = 0.5


def check(recipe: Recipe, conditions: Conditions) -> None:
    """Raises `InputError` for settings out of range, a depth below 1, and no weights to prune."""
    settings = _Settings.read(recipe.settings)
    check_depth(recipe, low=1.0, high=1.0, instead="weights of all layers are compared")
    check_sparsity(conditions.model, settings.sparsity)


def transfer(recipe: Recipe, structure: Mapping[str, Any]) -> Transfer:
    """Returns a transfer that trains powers of the weights and cuts them."""
    settings = _Settings.read(recipe.settings)
    if settings.alpha == 1 and settings.sparsity == 0:
        return Transfer()
    return Powerpropagation(
        alpha=settings.alpha, sparsity=settings.sparsity, prune_at=settings.prune_at
    )


class Power(nn.Module):
    """w = sign(theta) |theta|^alpha, for alpha above 1."""

    def __init__(self, alpha: float) -> None:
        super().__init__()
        self.alpha = alpha

    def forward(self, theta: Tensor) -> Tensor:
        """The weight; at theta = 0 its gradient is 0."""
        # theta * |theta|^(alpha - 1) is the same, but differentiates to 0 / 0 at 0
        return theta.sign() * theta.abs().pow(self.alpha)

    def right_inverse(self, weight: Tensor) -> Tensor:
        """The theta that makes the weight."""
        return weight.sign() * weight.abs().pow(1 / self.alpha)


class Powerpropagation(MaskedTransfer):
    """Trains theta in the place of the weights, and holds it at zero where it was pruned."""

    def __init__(self, *, alpha: float, sparsity: float, prune_at: float) -> None:
        super().__init__()
        self._alpha = alpha
        self._sparsity = sparsity
        self._prune_at = prune_at

    def attach(self, model: nn.Module) -> None:
        self._sizes = [weight.numel() for weight in backbone_weights(model).values()]
        if self._alpha > 1:
            reparametrize(model, lambda _: Power(self._alpha))
        self.weights = self._thetas(model)
        self.set_masks({n: torch.ones_like(w, dtype=torch.bool) for n, w in self.weights.items()})

    def shared_steps(self, *, total_steps: int) -> int:
        return self._cut(total_steps)

    def before_forward(self, *, step: int, total_steps: int) -> None:
        if step == self._cut(total_steps):
            self.set_masks(self._chosen(self.weights))

    @torch.no_grad()
    def hold(self, model: nn.Module) -> None:
        """Prunes the average, before the cut too: its statistics are those of the pruned model."""
        thetas = self._thetas(model)
        masks = self.masks if self._is_cut else self._chosen(thetas)
        for name, theta in thetas.items():
            theta.mul_(masks[name])

    def plain_model(self, model: nn.Module) -> nn.Module:
        pruned = deepcopy(model)
        self.hold(pruned)
        merge(pruned)
        return pruned

    def updated_params(self, model: nn.Module) -> int:
        """Counts the trained values without those that are pruned or that a rung leaves out."""
        pruned = sum(self._sizes) - kept_values(self._sizes, self._sparsity)
        return Transfer.updated_params(self, model) - pruned

    @property
    def _is_cut(self) -> bool:
        return any(self.zero_shares().values())

    def _cut(self, total_steps: int) -> int:
        """The step before which weights are pruned."""
        return round(self._prune_at * total_steps)

    def _thetas(self, model: nn.Module) -> dict[str, nn.Parameter]:
        """The parameters trained in the place of each weight, by the weight's name."""
        return originals(model) if self._alpha > 1 else backbone_weights(model)

    def _chosen(self, thetas: Mapping[str, Tensor]) -> Masks:
        """Masks of the largest weights, which are those of the largest theta."""
        scores = {name: theta.detach().abs() for name, theta in thetas.items()}
        return keep_largest(scores, sparsity=self._sparsity, scope=SparsityScope.GLOBAL)
