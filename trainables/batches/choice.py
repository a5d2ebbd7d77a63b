"""The choice of batches: features where they are all that training sees, else images."""

import torch
from torch import nn

from search_spaces.recipe import Recipe
from trainables.backbones.trunk import find_trunk
from trainables.batches.features import FeatureBatches
from trainables.batches.images import ImageBatches
from trainables.batches.interface import Batches, Inputs
from trainables.costs.flops import StepCost
from trainables.images.store import ImageStore
from trainables.rungs import reachable_levels


def choose_batches(
    model: nn.Module,
    *,
    recipe: Recipe,
    seed: int,
    store: ImageStore,
    inputs: Inputs,
    normalisation: object,
    cost: StepCost,
    inference_flops: float,
    levels: tuple[float, ...],
    spent_flops: float,
    mirror: bool,
    device: torch.device,
) -> Batches:
    """Features if only the classifier is trained and images reach it unchanged, else images.

    `model` is frozen and in its training mode. The arguments are as in `FeatureBatches` and
    `ImageBatches`, but for `levels`, the rungs' FLOPs. Raises `InfeasibleError` when the compute
    aimed at pays for too few features.
    """
    trunk = None
    if recipe.augmentation == recipe.mixup == recipe.cutmix == 0:
        trunk = find_trunk(model, resolution=recipe.resolution)
    if trunk is None:
        return ImageBatches(
            recipe=recipe,
            seed=seed,
            store=store,
            inputs=inputs,
            cost=cost,
            inference_flops=inference_flops,
            mirror=mirror,
            device=device,
        )
    reachable = reachable_levels(levels, target_flops=recipe.target_flops, spent_flops=spent_flops)
    return FeatureBatches(
        recipe=recipe,
        seed=seed,
        store=store,
        trunk=trunk,
        inputs=inputs,
        normalisation=normalisation,
        cost=cost,
        budget_flops=reachable[-1],
        spent_flops=spent_flops,
        device=device,
    )
