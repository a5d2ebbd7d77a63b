"""A method's context, made for one model on noise."""

from collections.abc import Iterator, Mapping
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn

from search_spaces.recipe import Setting
from tests.trainables.recipes import make_recipe
from trainables.backbones.layers import classifier_name
from trainables.costs.flops import count_flops
from trainables.method import MethodContext

RESOLUTION = 32
CLASSES = 5


def make_context(
    model: nn.Module, settings: Mapping[str, Setting], *, images: int = 40, **changes: Any
) -> MethodContext:
    """The context of a method that prepares `model`, with `images` images of noise to look at."""

    def batches(most: int) -> Iterator[Tensor]:
        draws = torch.Generator().manual_seed(0)
        shape = (min(images, most), 3, RESOLUTION, RESOLUTION)
        yield from torch.randn(shape, generator=draws).split(16) if images else ()

    def labelled(most: int) -> Iterator[tuple[Tensor, Tensor]]:
        for noise in batches(most):
            yield noise, torch.arange(len(noise)) % CLASSES

    values: dict[str, Any] = {
        "recipe": make_recipe(settings=settings, resolution=RESOLUTION),
        "head": classifier_name(model),
        "seed": 1,
        "calibration": batches,
        "labelled": labelled,
        "forward_flops": lambda: count_flops(model, resolution=RESOLUTION).forward_flops,
        "train_flops": lambda: count_flops(model, resolution=RESOLUTION).train_flops,
        "width_multiple": 1,
        "fresh": lambda: deepcopy(model),
        "source_task": None,
    }
    return MethodContext(**values | changes)
