"""What a method must keep that may change no more than a share of the backbone."""

from pathlib import Path
from typing import Any

from search_spaces.recipe import Optimizer, Recipe, Schedule
from tests.trainables.methods.method_contract import assert_resumes, pretrained
from tests.trainables.recipes import SMALL, rung_uri
from trainables.backbones import build as backbones
from trainables.checkpoints import complete_rungs, load_checkpoint
from trainables.images.store import ImageStore

LEVELS = (1.2e8, 3e8, 5.3e8, 8e8)
"""Rungs of the small backbone at steps 2, 5, 9 and 13."""
FREE_LEVELS = (4e8, 1.2e9, 2.2e9, 3e9)
"""The like for a schedule-free optimiser, which pays for re-estimated norms at every rung."""


def optimized(optimizer: Optimizer) -> dict[str, Any]:
    """The fields of a recipe that trains by `optimizer`, with all that may disturb a delta."""
    free = optimizer is Optimizer.SCHEDULE_FREE_ADAMW
    return {
        "optimizer": optimizer,
        "schedule": Schedule.CONSTANT if free else Schedule.COSINE,
        "learning_rate": 0.01 if optimizer is Optimizer.SGD else 0.001,
        "weight_decay": 0.01,
        "clip_norm": 1.0,
        "mixup": 0.2,
        "target_flops": FREE_LEVELS[-1] if free else LEVELS[-1],
    }


def assert_keeps_to_budget(
    store: ImageStore, recipe: Recipe, folder: Path, *, phases: tuple[float, ...]
) -> None:
    """At every rung of a trial, and from wherever it is resumed, the budget holds.

    `phases` are the shares of the steps at which the method changes what it does; rungs must lie
    before, between and after them.
    """
    levels = FREE_LEVELS if recipe.optimizer is Optimizer.SCHEDULE_FREE_ADAMW else LEVELS
    weights = pretrained()
    assert_resumes(store, recipe, folder, levels=levels, weights=weights)
    plain = backbones.build(SMALL, num_classes=len(store.class_names))
    sizes = {name: p.numel() for name, p in plain.named_parameters()}
    head = sizes["fc.weight"] + sizes["fc.bias"]
    budget = recipe.settings["budget"]
    assert isinstance(budget, float)
    steps = []
    for rung in complete_rungs((folder / "whole").as_uri()):
        tensors, state = load_checkpoint(rung_uri(folder / "whole", rung), ("measured",))
        measured = tensors["measured"]
        moved = sum(int((measured[n] != weights[n]).sum()) for n in sizes if "fc" not in n)
        promised = state["measurement"]["updated_params"] - head
        assert 0 < moved <= promised <= budget * (sum(sizes.values()) - head)
        steps.append(state["step"])
    assert moved > 0.3 * promised  # on so few pixels many values only ever meet padding
    met = {sum(step >= phase * steps[-1] for phase in phases) for step in steps}
    assert met == set(range(len(phases) + 1)), "no rung lies in one of the phases"
