"""Recipes and trials on the digits, small enough for a test."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from search_spaces.recipe import Recipe
from trainables.backbones.build import Backbone
from trainables.backbones.source import BackboneSource
from trainables.backbones.state import Weights
from trainables.checkpoints import checkpoint_folder
from trainables.finetune import Finetuning
from trainables.images.store import ImageStore
from trainables.images.tasks import TaskSource
from trainables.learning.precision import Precision
from trainables.measurement import Measurement, Outcome
from trainables.rungs import rung_levels

LEVELS = rung_levels(min_flops=2e8, max_flops=8e8, per_decade=5)
DIGITS = TaskSource(source="digits", classes=("0", "1", "2", "3"), max_train_images=96)
SMALL = BackboneSource(model="test_resnet")


def make_recipe(*, pruning_ratio: float = 0.0, width_rule: str = "inner", **changes: Any) -> Recipe:
    """A dense recipe that trains everything, but for the changes."""
    values: dict[str, Any] = {
        "method": "filter_pruning",
        "settings": {
            "pruning_ratio": pruning_ratio,
            "criterion": "l1",
            "width_rule": width_rule,
            "scope": "layer",
            "batch_norm_repair": pruning_ratio > 0,
            "ridge_repair": False,
        },
        "learning_rate": 0.01,
        "weight_decay": 1e-4,
        "batch_size": 8,
        "label_smoothing": 0.0,
        "layer_decay": 1.0,
        "trainable_depth": 1.0,
        "resolution": 16,
        "augmentation": 0.0,
        "target_flops": LEVELS[-1],
    }
    return Recipe(**values | changes)


def make_trial(
    store: ImageStore,
    recipe: Recipe,
    *,
    source: BackboneSource = SMALL,
    weights: Weights | None = None,
    levels: tuple[float, ...] = LEVELS,
    seed: int = 7,
    resume_from: str | None = None,
    continue_from: str | None = None,
    precision: Precision | None = None,
    source_task: Callable[[], ImageStore] | None = None,
) -> Finetuning:
    """The recipe on `store`, set up and not yet trained."""
    return Finetuning(
        recipe=recipe,
        seed=seed,
        backbone=Backbone(source=source, weights=weights),
        store=store,
        levels=levels,
        mirror=False,
        device=torch.device("cpu"),
        resume_from=resume_from,
        continue_from=continue_from,
        precision=precision,
        source_task=source_task,
    )


def run(trial: Finetuning, folder: Path | None = None) -> list[Measurement]:
    """Trains to the end, saving every rung in `folder`; the measurements, in order."""
    curve = []
    while trial.outcome is Outcome.RUNNING and (measured := advance(trial)) is not None:
        curve.append(measured)
        if folder is not None:
            trial.save(rung_uri(folder, measured.rung))
    return curve


def advance(trial: Finetuning) -> Measurement | None:
    """Trains to the next rung; its measurement, or None where the trial diverged."""
    trial.advance()
    if trial.outcome is Outcome.DIVERGED:
        return None
    assert trial.measurement is not None
    return trial.measurement


def rung_uri(folder: Path, rung: int) -> str:
    """Where `run` saves a rung."""
    return checkpoint_folder(folder.as_uri(), rung)
