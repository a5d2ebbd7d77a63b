"""SWR: a policy network decides which weights are reparametrised (arXiv 2302.13435).

From the paper: a policy network decides where the pretrained weights get a delta, under a
constraint on how many parameters are updated; it is used only during transfer, and afterwards the
deltas are merged and inference costs what the backbone's does. All else is in the spirit of the
paper, because the rest of it was not readable.

Ours: one decision a filter (output channel) or a layer, by `granularity`. The policy is a network
of two layers over what is known of a unit (depth, size, size of its pretrained values, rank among
its layer's) and an embedding of its own; it gives a logit a unit, 0 at first. Until half of the
steps, every step draws a Gumbel-sigmoid gate a unit, hard forward and soft backward (arXiv
1611.01144), and Adam moves the policy by loss + penalty · max(0, expected / allowed updates - 1).
Then the units with the largest logits that fit the budget are chosen for good and the policy is
gone; a rung before that is measured with what would be chosen there. The budget is a share of the
backbone's parameters, norms included, which all move, and the head left out. Weight decay pulls δ,
and so the weight to its pretrained value. Biases outside of norms stay. The policy's forward and
backward pass are billed at every step, those after the choice included.

Settings: `budget` in (0, 1], `granularity` (filter, layer), `penalty` ≥ 0. Budget 1 is plain
finetuning, whatever the others; below it, `trainable_depth` must be 1.
"""

from collections.abc import Mapping
from math import ceil, prod
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from search_spaces.recipe import Recipe
from trainables.backbones.layers import backbone_weights
from trainables.learning.optimizers import (
    optimizer_numbers,
    optimizer_tensors,
    restore_optimizer,
)
from trainables.mechanisms.deltas import GatedDelta, GatedTransfer, check_budget, open_gates
from trainables.method import Conditions, MethodContext, Prepared, Transfer
from trainables.seeds import generator
from trainables.settings import Settings

CHOOSING = 0.5
"""Share of the steps after which the choice of units stands."""
POLICY_RATE = 0.002
"""Learning rate of the policy's Adam: at ten times it, nearly all gates close in ten steps."""
TEMPERATURE = 1.0
"""Temperature of the sigmoid: the smaller, the closer soft gates are to hard ones."""
EMBEDDING = 8
"""Values that the policy learns of each unit alone."""
HIDDEN = 32
"""Width of the policy's hidden layer."""


class _Settings(Settings):
    budget: float = Field(gt=0, le=1)
    granularity: Literal["filter", "layer"]
    penalty: float = Field(ge=0)


def check(recipe: Recipe, conditions: Conditions) -> None:
    """Raises `InputError` for settings out of range and a budget that holds no unit."""
    settings = _Settings.read(recipe.settings)
    if settings.budget < 1:
        per_filter = settings.granularity == "filter"
        check_budget(recipe, conditions, budget=settings.budget, per_filter=per_filter)


def prepare(model: nn.Module, context: MethodContext) -> Prepared:
    """Leaves the model as it is and notes the seed of the policy and the gates."""
    return Prepared(flops=0.0, structure={"seed": context.seed})


def transfer(recipe: Recipe, structure: Mapping[str, Any]) -> Transfer:
    """Returns deltas behind gates that a policy draws."""
    settings = _Settings.read(recipe.settings)
    if settings.budget == 1:
        return Transfer()
    return Swr(
        budget=settings.budget,
        granularity=settings.granularity,
        penalty=settings.penalty,
        seed=structure["seed"],
    )


class Policy(nn.Module):
    """A network that gives the logits [units] of updating each unit of a model's weights."""

    def __init__(self, features: Tensor, *, seed: int) -> None:
        """`features` [units, F] describe the units, each column with mean 0 and deviation 1.

        The first logits are all 0.
        """
        nn.Module.__init__(self)
        units, known = features.shape
        width = known + EMBEDDING
        draws = generator(seed, "policy")
        self.features: Tensor
        self.register_buffer("features", features)
        self.embedding = nn.Parameter(torch.randn(units, EMBEDDING, generator=draws))
        self.inner = nn.Parameter(torch.randn(width, HIDDEN, generator=draws) / width**0.5)
        self.inner_bias = nn.Parameter(torch.zeros(HIDDEN))
        self.outer = nn.Parameter(torch.zeros(HIDDEN, 1))
        self.outer_bias = nn.Parameter(torch.zeros(1))

    @property
    def step_flops(self) -> float:
        """FLOPs of a forward and a backward pass: each product's two operands need gradients."""
        products = prod(self.inner.shape) + prod(self.outer.shape)
        return 3 * 2.0 * len(self.embedding) * products

    def forward(self) -> Tensor:
        known = torch.cat([self.features, self.embedding], dim=1)
        hidden = torch.relu(known @ self.inner + self.inner_bias)
        return (hidden @ self.outer + self.outer_bias).squeeze(1)


class Swr(GatedTransfer):
    """Gates that a policy draws while it learns, and that stay as they are once it is gone."""

    def __init__(self, *, budget: float, granularity: str, penalty: float, seed: int) -> None:
        GatedTransfer.__init__(self, budget=budget, per_filter=granularity == "filter", score=0.0)
        self._penalty = penalty
        self._seed = seed

    def attach(self, model: nn.Module) -> None:
        weights = [weight.detach() for weight in backbone_weights(model).values()]
        GatedTransfer.attach(self, model)
        features = unit_features(weights, self.deltas)
        self.policy = Policy(features.cpu(), seed=self._seed).to(features.device)
        self._adam = torch.optim.Adam(self.policy.parameters(), lr=POLICY_RATE)
        self._sizes = self.unit_sizes.to(features.device)
        self._logits = torch.zeros(len(features))
        self.step_flops = self.policy.step_flops

    def scores(self) -> Tensor:
        return self._logits

    def shared_steps(self, *, total_steps: int) -> int:
        return ceil(CHOOSING * total_steps) - 1  # the last step before the choice makes it

    def before_forward(self, *, step: int, total_steps: int) -> None:
        if self.settled:
            return
        logits = self.policy()
        self._logits = logits.detach()
        draws = torch.rand(len(logits), generator=generator(self._seed, "gates", step))
        noise = draws.clamp(1e-6, 1 - 1e-6).logit().to(logits.device)
        self._soft = torch.sigmoid((logits + noise) / TEMPERATURE)
        self._expected = (self._sizes * torch.sigmoid(logits)).sum()
        open_gates(self.deltas, self._soft > 0.5)

    def after_backward(self, *, step: int, total_steps: int) -> None:
        if not self.settled:
            pull = torch.cat([_gradient(delta.score) for delta in self.deltas])
            over = torch.relu(self._expected / self.room - 1)
            self._adam.zero_grad()
            ((self._soft * pull).sum() + self._penalty * over).backward()
            self._adam.step()
        GatedTransfer.after_backward(self, step=step, total_steps=total_steps)

    def after_update(self, *, step: int, total_steps: int) -> None:
        if not self.settled and step + 1 >= ceil(CHOOSING * total_steps):
            self.settle()

    def tensors(self) -> dict[str, Tensor]:
        weights = {f"policy:{name}": value for name, value in self.policy.state_dict().items()}
        moments = optimizer_tensors(self._adam, self.policy)
        adam = {f"adam:{name}": value for name, value in moments.items()}
        return {"logits": self._logits, **weights, **adam}

    def state(self) -> dict[str, Any]:
        return {**GatedTransfer.state(self), "groups": optimizer_numbers(self._adam)}

    def restore(self, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
        GatedTransfer.restore(self, tensors, state)
        self._logits = tensors["logits"]
        self.policy.load_state_dict(_under("policy:", tensors))
        restore_optimizer(
            self._adam, self.policy, tensors=_under("adam:", tensors), numbers=state["groups"]
        )


def unit_features(weights: list[Tensor], deltas: list[GatedDelta]) -> Tensor:
    """Describes every unit [units, 4] for the policy.

    The columns are depth, log size, log of the root mean square of its values, and by how many
    standard deviations that differs from its layer's mean; each column is then brought to mean 0
    and standard deviation 1, or is all 0 where units do not differ.
    """
    rows = []
    for depth, (weight, delta) in enumerate(zip(weights, deltas, strict=True)):
        values = weight.reshape(delta.units, -1)
        magnitude = values.square().mean(1).clamp(min=1e-12).log() / 2
        ones = torch.ones_like(magnitude)
        columns = depth * ones, delta.unit_size * ones, magnitude, _standard(magnitude)
        rows.append(torch.stack(columns, dim=1))
    features = torch.cat(rows)
    features[:, 1].log_()
    return torch.stack([_standard(column) for column in features.unbind(1)], dim=1)


def _standard(values: Tensor) -> Tensor:
    centred = values - values.mean()
    return centred / values.std(correction=0).clamp(min=1e-6)


def _gradient(score: nn.Parameter) -> Tensor:
    """Takes the gradient away, so that no optimiser moves the score, and returns it flat.

    It is zero where the layer took no part.
    """
    gradient, score.grad = score.grad, None
    return torch.zeros_like(score).flatten() if gradient is None else gradient.flatten()


def _under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {
        name.removeprefix(prefix): value
        for name, value in tensors.items()
        if name.startswith(prefix)
    }
