"""PAC-Net: large weights hold the source task, and only the small ones learn the new task.

From the paper (arXiv 2206.05703), in its three steps. Prune: the largest weights of the source
model are kept, unstructured. Allocate: the others are zero while the source task is trained on with
those kept. Calibrate: on the target the kept weights stay, bit for bit, and the pruned ones are
trained from zero with the penalty lambda ||(1 - m) w||^2. The paper prunes 80 % with lambda 0.01.

Ours: magnitudes are compared over all layers together; the source task is the config's
`source_task`, unaugmented, at the recipe's resolution, batch size, optimiser and learning rate, and
gets a share of the compute that the recipe aims at, which is billed like any other (the paper
trains to convergence, and saves no compute). Everything below the classifier then goes to the
target model, norms and biases with their statistics too, which are trained on both tasks as in
plain finetuning. Each task has a classifier of its own. The gradients of held weights are computed
and paid for.

Settings: `sparsity` in [0, 1), the share of the weights below the head that is pruned and then
learns the target; `penalty`, lambda, at least 0 (0.01 unless given); `allocate_share` in (0, 1),
what the retraining may spend of the recipe's `target_flops` (0.25 unless given). Sparsity 0 prunes
nothing, retrains nothing and holds nothing: plain finetuning. `trainable_depth` must be 1.
"""

import math
from collections.abc import Iterator, Mapping
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor, nn

from search_spaces.recipe import Recipe
from trainables.backbones.layers import backbone_weights, is_within
from trainables.backbones.state import load_weights_into
from trainables.costs.flops import count_flops
from trainables.errors import InfeasibleError, InputError
from trainables.learning.freezing import train_mode
from trainables.learning.learner import Learner
from trainables.learning.precision import Precision
from trainables.mechanisms.anchors import AnchoredTransfer, anchor_tensors
from trainables.mechanisms.masks import MaskedTransfer, Masks
from trainables.mechanisms.sparsity import SparsityScope, check_sparsity, keep_largest
from trainables.method import Conditions, MethodContext, Prepared, SourceTask, Transfer
from trainables.seeds import derive_seed
from trainables.settings import Settings, check_depth

LOSS_CHECK_PERIOD = 16
"""Steps between looks at whether the source task's loss is still finite."""


class _Settings(Settings):
    sparsity: Annotated[float, Field(ge=0, lt=1)]
    penalty: Annotated[float, Field(ge=0)] = 0.01
    allocate_share: Annotated[float, Field(gt=0, lt=1)] = 0.25


def check(recipe: Recipe, conditions: Conditions) -> None:
    """Raises `InputError` for settings out of range, a depth below 1, no weights to prune, and a
    config without a source task."""
    settings = _Settings.read(recipe.settings)
    check_depth(recipe, low=1.0, high=1.0, instead="pruned weights of all layers are trained")
    check_sparsity(conditions.model, settings.sparsity)
    if not conditions.source_task:
        raise InputError(
            "pac_net retrains the pruned backbone on the task that it was trained on, and the "
            "config names none; add a source_task section to the config, or choose another method."
        )


def prepare(model: nn.Module, context: MethodContext) -> Prepared:
    """Prunes, and trains on with what is kept on the source task.

    Costs, all counted: the steps on the source task, and the images that make a schedule-free
    average's statistics. Raises `InfeasibleError` when `allocate_share` pays no step, and when the
    loss on the source task stops being finite.
    """
    settings = _Settings.read(context.recipe.settings)
    if settings.sparsity == 0:
        return Prepared(flops=0.0)
    if context.source_task is None:
        raise InfeasibleError("pac_net needs a source_task in the config")
    scores = {name: weight.detach().abs() for name, weight in backbone_weights(model).items()}
    kept = keep_largest(scores, sparsity=settings.sparsity, scope=SparsityScope.GLOBAL)
    allocation = _Allocation(context.source_task(), kept, context)
    allocated = allocation.run(share=settings.allocate_share)
    below_head = {
        name: value
        for name, value in allocated.state_dict().items()
        if not is_within(name, context.head)
    }
    load_weights_into(model, below_head, strict=False)
    pruned = {name: ~mask for name, mask in kept.items()}
    return Prepared(
        flops=allocation.flops, tensors=anchor_tensors(pruned, dict(model.named_parameters()))
    )


def transfer(recipe: Recipe, structure: Mapping[str, Any]) -> Transfer:
    """Returns the calibration on the target."""
    settings = _Settings.read(recipe.settings)
    return Calibration(penalty=settings.penalty) if settings.sparsity > 0 else Transfer()


class Calibration(AnchoredTransfer):
    """Holds the kept weights as they are, and keeps the pruned ones small.

    Its masks are True where a weight was pruned and is free to learn the target. A run towards
    more compute shares none of its steps, because it retrains on the source task for longer.
    """

    def __init__(self, *, penalty: float) -> None:
        super().__init__()
        self._penalty = penalty

    def shared_steps(self, *, total_steps: int) -> int:
        return 0

    def penalty(self, *, step: int, total_steps: int) -> Tensor | None:
        if self._penalty == 0:
            return None
        squares = [
            (self.parameters[name] * mask).square().sum() for name, mask in self.masks.items()
        ]
        return self._penalty * torch.stack(squares).sum()


class _Allocation:
    """A pruned model's training on its source task, and what that has cost so far."""

    def __init__(self, source: SourceTask, kept: Masks, context: MethodContext) -> None:
        self._source = source
        self._context = context
        self._size = max(2, context.recipe.batch_size)  # batch norms need a variance
        self._model = source.model.requires_grad_()
        train_mode(self._model)
        self._transfer = MaskedTransfer()
        self._transfer.attach(self._model)
        self._transfer.set_masks(kept)
        self._cost = count_flops(self._model, resolution=context.recipe.resolution)
        self._learner = Learner(
            self._model,
            context.recipe,
            trained=self._model,
            seed=derive_seed(context.seed, "allocate"),
            class_weights=None,
            precision=Precision.of(next(self._model.parameters()).device),
            transfer=self._transfer,
        )
        self.flops = 0.0
        """Training FLOPs executed."""

    def run(self, *, share: float) -> nn.Module:
        """Spends `share` of the compute aimed at.

        Returns the average of the retrained model, zero where it was pruned.
        """
        budget_flops = share * self._context.recipe.target_flops
        step_flops = self._size * self._cost.train_flops + self._cost.fixed_flops
        settling_images = min(self._learner.average.settling_images, self._source.train_images)
        settling = math.ceil(settling_images / self._size)  # batches
        settling_flops = settling * self._size * self._cost.forward_flops
        steps = math.floor((budget_flops - settling_flops) / step_flops)
        if steps < 1:
            raise InfeasibleError(
                f"allocate_share pays {budget_flops:.3g} FLOPs, and one step on the source task "
                f"takes {settling_flops + step_flops:.3g}",
                needs_flops=(settling_flops + step_flops) / share,
            )
        for step in range(steps):
            images, labels = self._source.batch(step, self._size)
            loss = self._learner.learn(images, labels, step=step, total_steps=steps)
            self.flops += step_flops
            looks = step % LOSS_CHECK_PERIOD == 0 or step == steps - 1
            if looks and not math.isfinite(loss.item()):
                reason = "the loss on the source task is not finite"
                raise InfeasibleError(reason, spent_flops=self.flops)
        self._learner.average.settle(self._batches(steps, settling), hold=self._transfer.hold)
        self.flops += settling_flops
        return self._transfer.plain_model(self._learner.average.model)

    def _batches(self, first: int, number: int) -> Iterator[Tensor]:
        for step in range(first, first + number):
            yield self._source.batch(step, self._size)[0]
