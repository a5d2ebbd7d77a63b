"""FISH mask: training moves the few values that the empirical Fisher calls important, and the head.

From the paper (arXiv 2111.09839): the importance of a value is the sum of its squared gradients of
log p(label) over N single training samples with their true labels; the k largest of all values but
the classifier's are updated, k = share · (their number); the mask is fixed before training, and the
classifier is always trained. Its k is 0.5 % (0.02-2.1 % tried), its N 1024.

Ours: k is counted over every parameter below the head, convolutions, linear layers, gains and
biases. All others stay bit-identical under any optimiser. Batch-norm statistics are not parameters
and follow the images in every norm, as in plain finetuning. A convolution or linear layer without a
chosen value has no weight gradient, which saves its FLOPs. The classifier was just made for the new
task, so the gradients are those of a random linear readout.

Settings: `share` in (0, 1], where 1 switches the method off and is plain finetuning, and `samples`,
at least 1 (default 1024; at most all training images are used). `trainable_depth` must be 1: the
Fisher says where to train.
"""

from collections.abc import Mapping
from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn

from search_spaces.recipe import Recipe
from trainables.backbones.layers import backbone_weights, below_head
from trainables.errors import InfeasibleError, InputError
from trainables.mechanisms.anchors import AnchoredTransfer, anchor_tensors
from trainables.mechanisms.masks import Masks
from trainables.mechanisms.sample_gradients import gradients_of, sample_gradients
from trainables.mechanisms.sparsity import keep_counts
from trainables.method import Conditions, MethodContext, Prepared, Transfer
from trainables.settings import Settings, check_depth


class _Settings(Settings):
    share: float = Field(gt=0, le=1)
    samples: int = Field(default=1024, ge=1)


def check(recipe: Recipe, conditions: Conditions) -> None:
    """Raises `InputError` for settings out of range, a depth below 1, and a share of no value."""
    settings = _Settings.read(recipe.settings)
    check_depth(recipe, low=1.0, high=1.0, instead="the Fisher says where to train")
    if not backbone_weights(conditions.model):
        raise InputError(
            f"{type(conditions.model).__name__} has no convolution or linear layer below its head "
            "whose values a mask could choose; choose another method or backbone."
        )
    values = sum(p.numel() for p in below_head(conditions.model).values())
    if round(settings.share * values) < 1:
        raise InputError(
            f"share={settings.share!r} of the {values} values below the head is less than one; it "
            f"must be at least {1 / values:.1g}."
        )


def prepare(model: nn.Module, context: MethodContext) -> Prepared:
    """Chooses the values that training may move.

    Costs, all counted: a forward and backward pass for each of `samples` images, without the
    classifier's weight gradient. Raises `InfeasibleError` where there is no image or a gradient is
    not finite.
    """
    settings = _Settings.read(context.recipe.settings)
    if settings.share == 1:
        return Prepared(flops=0.0)
    fisher, flops = _fisher(model, context, samples=settings.samples)
    masks = _largest(fisher, share=settings.share)
    # a norm whose gradients are all off would keep its statistics, and its own cost nothing
    frozen = [name for name in backbone_weights(model) if not masks[name].any()]
    partly = {name: mask for name, mask in masks.items() if name not in frozen}
    tensors = anchor_tensors(partly, dict(model.named_parameters()))
    return Prepared(flops=flops, structure={"frozen": frozen}, tensors=tensors)


def transfer(recipe: Recipe, structure: Mapping[str, Any]) -> Transfer:
    """Returns a transfer that holds the values that were not chosen."""
    if _Settings.read(recipe.settings).share == 1:
        return Transfer()
    return AnchoredTransfer(frozen=structure["frozen"])


def _fisher(
    model: nn.Module, context: MethodContext, *, samples: int
) -> tuple[dict[str, Tensor], float]:
    """Σ (∂ log p(label) / ∂θ)² over the samples for each parameter below the head; its FLOPs."""
    below = below_head(model)
    sums = {name: torch.zeros_like(p, requires_grad=False) for name, p in below.items()}
    images = 0
    with gradients_of(model, below.keys()):
        for gradients in sample_gradients(model, context.labelled(samples)):
            images += 1
            found = [gradients[name] for name in sums]
            torch._foreach_addcmul_(list(sums.values()), found, found)
        flops = images * context.train_flops()
    if not images:
        raise InfeasibleError("There is no labelled image to differentiate the loss of.")
    for name, total in sums.items():
        if not total.isfinite().all():
            reason = f"The gradient of {name} is not finite on these images."
            raise InfeasibleError(reason, spent_flops=flops)
    return sums, flops


def _largest(fisher: Mapping[str, Tensor], *, share: float) -> Masks:
    """Masks, True at the largest of all values together."""
    flat = torch.cat([values.flatten() for values in fisher.values()])
    mask = keep_counts({"all": flat}, {"all": round(share * len(flat))})["all"]
    parts = mask.split([values.numel() for values in fisher.values()])
    pairs = zip(fisher.items(), parts, strict=True)
    return {name: part.view(values.shape) for (name, values), part in pairs}
