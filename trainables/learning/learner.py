"""The learner: a model that is trained batch by batch as its recipe says."""

from collections.abc import Iterator, Mapping
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from search_spaces.recipe import Optimizer, Recipe
from trainables.backbones.state import load_weights_into
from trainables.learning.averages import RunningAverage, ScheduleFreeAverage
from trainables.learning.batch_norm import trained_batch_norms
from trainables.learning.losses import training_loss
from trainables.learning.mixing import Targets, mix
from trainables.learning.optimizers import (
    build_optimizer,
    optimizer_numbers,
    optimizer_tensors,
    restore_optimizer,
)
from trainables.learning.precision import Precision
from trainables.learning.schedules import set_learning_rate
from trainables.method import Transfer
from trainables.seeds import derive_seed


class Learner:
    """Trains a model in place; what is measured and exported is its average.

    That is the optimiser's own where it is schedule-free, else the polynomial-decay average of the
    last steps, whatever the schedule: early rungs are measured before the rate has fallen.

    A step that runs out of memory is taken again with its batch in twice as many parts, and so are
    all later ones: the gradient is the same mean over the same images, mixed in the same way. Batch
    norms then see the smaller parts, and dropout draws anew for each.
    """

    def __init__(
        self,
        model: nn.Module,
        recipe: Recipe,
        *,
        trained: nn.Module,
        seed: int,
        class_weights: Tensor | None,
        precision: Precision,
        transfer: Transfer | None = None,
    ) -> None:
        """`model` is prepared, frozen as the recipe says, in train mode and on its device.

        `trained` is what gives logits, in a step, from the batch: the model or a part of it.
        `class_weights` is as in `training_loss`. `transfer` is attached to the model already;
        plain finetuning where None.
        """
        self._model = precision.lay_out(model)
        self._forward = trained
        self._recipe = recipe
        self._seed = seed
        self._class_weights = class_weights
        self._precision = precision
        self._transfer = transfer or Transfer()
        self._parts = 1
        self._parameters = [p for p in model.parameters() if p.requires_grad]
        self._smallest_part = 2 if trained_batch_norms(model) else 1
        self._optimizer = build_optimizer(
            recipe.optimizer,
            model,
            learning_rate=recipe.learning_rate,
            weight_decay=recipe.weight_decay,
            layer_decay=recipe.layer_decay,
        )
        self.average: RunningAverage | ScheduleFreeAverage = (
            ScheduleFreeAverage(model, self._optimizer)
            if recipe.optimizer is Optimizer.SCHEDULE_FREE_ADAMW
            else RunningAverage(model)
        )

    def learn(self, inputs: Tensor, labels: Tensor, *, step: int, total_steps: int) -> Tensor:
        """Takes step number `step`, from 0, on inputs [B, ...] and labels [B]; its loss."""
        recipe = self._recipe
        inputs, targets = mix(
            inputs,
            labels,
            mixup=recipe.mixup,
            cutmix=recipe.cutmix,
            seed=derive_seed(self._seed, "mix", step),
        )
        self._transfer.before_forward(step=step, total_steps=total_steps)
        loss = self._backward(
            self._precision.images(inputs), targets, step=step, total_steps=total_steps
        )
        self._transfer.after_backward(step=step, total_steps=total_steps)
        if recipe.clip_norm > 0:
            nn.utils.clip_grad_norm_(self._parameters, recipe.clip_norm)
        set_learning_rate(
            self._optimizer, schedule=recipe.schedule, step=step, total_steps=total_steps
        )
        self._optimizer.step()
        self._transfer.after_update(step=step, total_steps=total_steps)
        self.average.update(step=step + 1)
        return loss

    def tensors(self) -> dict[str, dict[str, Tensor]]:
        """The tensors that `restore` needs, in the groups of a checkpoint."""
        return {
            "model": self._model.state_dict(),
            "average": self.average.model.state_dict(),
            "optimizer": optimizer_tensors(self._optimizer, self._model),
            "transfer": self._transfer.tensors(),
        }

    def state(self) -> dict[str, Any]:
        """The rest of what `restore` needs, as JSON keeps it."""
        return {
            "groups": optimizer_numbers(self._optimizer),
            "parts": self._parts,
            "transfer": self._transfer.state(),
        }

    def restore(
        self, tensors: Mapping[str, Mapping[str, Tensor]], state: Mapping[str, Any]
    ) -> None:
        """Goes on where the learner that gave `tensors` and `state` stood."""
        load_weights_into(self._model, tensors["model"])
        load_weights_into(self.average.model, tensors["average"])
        restore_optimizer(
            self._optimizer, self._model, tensors=tensors["optimizer"], numbers=state["groups"]
        )
        self._parts = state["parts"]
        self._transfer.restore(tensors["transfer"], state["transfer"])

    def _backward(self, inputs: Tensor, targets: Targets, *, step: int, total_steps: int) -> Tensor:
        """Leaves the batch's gradient in the parameters and returns its loss."""
        most_parts = len(inputs) // self._smallest_part
        while True:
            # Dropout and stochastic depth draw from the global stream: place it by the step.
            _seed_global_streams(derive_seed(self._seed, "step", step), device=inputs.device)
            self._optimizer.zero_grad(set_to_none=True)
            try:
                loss = self._accumulate(inputs, targets)
                penalty = self._transfer.penalty(step=step, total_steps=total_steps)
                if penalty is None:
                    return loss
                penalty.backward()
                return loss + penalty.detach()
            except torch.OutOfMemoryError:
                if self._parts >= most_parts:
                    raise
            self._parts = min(2 * self._parts, most_parts)
            if inputs.is_cuda:
                torch.cuda.empty_cache()

    def _accumulate(self, inputs: Tensor, targets: Targets) -> Tensor:
        total = torch.zeros((), device=inputs.device)
        for rows in _parts(len(inputs), self._parts):
            with self._precision.step(inputs.device):
                logits = self._forward(inputs[rows])
            loss = training_loss(
                logits,
                targets.part(rows),
                label_smoothing=self._recipe.label_smoothing,
                weights=self._class_weights,
            )
            loss = loss * ((rows.stop - rows.start) / len(inputs))
            loss.backward()
            total += loss.detach()
        return total


def _seed_global_streams(seed: int, *, device: torch.device) -> None:
    """Seeds the CPU and `device` as `torch.manual_seed` does.

    That one also notes a stack trace for each kind of device that is not there, which took half the
    time of a head's step.
    """
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.manual_seed(seed)


def _parts(size: int, parts: int) -> Iterator[slice]:
    """`size` rows in so many parts, as equal as can be."""
    bounds = [size * part // parts for part in range(parts + 1)]
    return (slice(low, high) for low, high in pairwise(bounds))
