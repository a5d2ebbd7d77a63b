"""The worth of pruning and of each repair when compute is small.

A MobileNetV1 (half width, ImageNet weights) learns the 43 traffic signs of GTSRB at 48 pixels:
dense against pruned to 0.25, 0.5 and 0.75, each without repair, with re-estimated batch norms, with
the ridge correction, and with both. Every arm has the same training FLOPs, all that preparing it
costs included. The learning rate is chosen for each arm by validation error with a seed of its own;
then three other seeds are trained and measured once on the test images."""

import multiprocessing
import os
import statistics
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from timm.models import efficientnet
from torch import nn

from search_spaces.recipe import Recipe
from tests.benchmarks.publish import publish
from tests.checkout import SHARED
from trainables.backbones import build as backbones
from trainables.backbones.build import Backbone
from trainables.backbones.source import BackboneSource
from trainables.finetune import Finetuning
from trainables.images.store import ImageStore, open_store
from trainables.images.tasks import TaskSource

WEIGHTS = SHARED / "weights" / "mobilenetv1_050_imagenet_qat.safetensors"
DATA = SHARED / "data" / "gtsrb"
RESOLUTION = 48
TRAIN_FLOPS = 2e11
CRITERION = "fisher"
"""Norms undo the arbitrary scale of these filters, which were trained in 8 bits; L1 ranks by it."""
RATIOS = (0.0, 0.25, 0.5, 0.75)
LEARNING_RATES = (0.01, 0.03, 0.1)
CHOOSING_SEED = 100
SEEDS = (0, 1, 2)


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One way to prepare the backbone."""

    ratio: float
    """Share of the block-internal filters that go."""
    batch_norm: bool
    """Whether statistics are re-estimated."""
    ridge: bool
    """Whether layers behind pruned ones are corrected."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """One training run of an arm."""

    arm: Arm
    learning_rate: float
    seed: int
    split: str
    """The images that the error is measured on."""


@dataclass(frozen=True, kw_only=True)
class Result:
    """The outcome of a run."""

    error: float
    images: int
    """Training images seen."""
    setup_flops: float
    """The part of the arm's training FLOPs that preparing it costs."""


def main() -> None:
    """Runs all arms, as many side by side as there are cores, and prints the table."""
    if missing := [path for path in (WEIGHTS, DATA) if not path.exists()]:
        raise SystemExit(f"{missing[0]} is missing; lay the shared data beside the checkout.")
    arms = [
        Arm(ratio=ratio, batch_norm=batch_norm, ridge=ridge)
        for ratio in RATIOS
        for ridge in ((False, True) if ratio else (False,))
        for batch_norm in (False, True)
    ]
    processes = os.cpu_count() or 1
    with multiprocessing.get_context("spawn").Pool(processes, torch.set_num_threads, (1,)) as pool:
        rates = _choose_rates(pool, arms)
        runs = [
            Run(arm=arm, learning_rate=rates[arm], seed=seed, split="test")
            for arm in arms
            for seed in SEEDS
        ]
        results = pool.map(_train, runs, chunksize=1)
    rows = [
        _row(arm, rates[arm], [r for run, r in zip(runs, results, strict=True) if run.arm == arm])
        for arm in arms
    ]
    result = {
        "what": f"test error of mobilenetv1_050 on gtsrb at {RESOLUTION} px, {CRITERION}, inner "
        f"widths, {len(SEEDS)} seeds (mean, standard deviation)",
        "train_flops": TRAIN_FLOPS,
        "learning_rates": f"the best of {LEARNING_RATES} on validation, with one other seed",
        "arms": rows,
    }
    publish("accuracy", title="Accuracy under small compute", result=result)


def mobilenet_v1(num_classes: int) -> nn.Module:
    """The half-width MobileNetV1, which timm builds and has no name for."""
    model: nn.Module = efficientnet._gen_mobilenet_v1(
        "mobilenetv1_100", 0.5, num_classes=num_classes, pad_type="same"
    )
    return model


def _choose_rates(pool: Any, arms: Sequence[Arm]) -> dict[Arm, float]:
    runs = [
        Run(arm=arm, learning_rate=rate, seed=CHOOSING_SEED, split="validation")
        for arm in arms
        for rate in LEARNING_RATES
    ]
    best: dict[Arm, tuple[float, float]] = {}
    for run, result in zip(runs, pool.map(_train, runs, chunksize=1), strict=True):
        found = result.error, run.learning_rate
        best[run.arm] = min(best.get(run.arm, found), found)
    return {arm: rate for arm, (_, rate) in best.items()}


def _train(run: Run) -> Result:
    store = _store(run.split)
    trial = Finetuning(
        recipe=_recipe(run),
        seed=run.seed,
        backbone=_backbone(),
        store=store,
        levels=(TRAIN_FLOPS,),
        mirror=False,
        device=torch.device("cpu"),
    )
    setup_flops = trial.unbilled_flops
    trial.advance()
    measured = trial.measurement
    if measured is None:
        return Result(error=1.0, images=0, setup_flops=setup_flops)
    return Result(error=measured.val_error, images=measured.images_seen, setup_flops=setup_flops)


def _recipe(run: Run) -> Recipe:
    return Recipe(
        method="filter_pruning",
        settings={
            "pruning_ratio": run.arm.ratio,
            "criterion": CRITERION,
            "width_rule": "inner",
            "scope": "layer",
            "batch_norm_repair": run.arm.batch_norm,
            "ridge_repair": run.arm.ridge,
        },
        learning_rate=run.learning_rate,
        weight_decay=1e-4,
        batch_size=32,
        label_smoothing=0.0,
        layer_decay=1.0,
        trainable_depth=1.0,
        resolution=RESOLUTION,
        augmentation=0.0,
        target_flops=TRAIN_FLOPS,
    )


def _backbone() -> Backbone:
    source = BackboneSource(
        model=f"{mobilenet_v1.__module__}:{mobilenet_v1.__name__}",
        weights=str(WEIGHTS),
        mean=(0.5, 0.5, 0.5),
        std=(0.5, 0.5, 0.5),
    )
    return Backbone(source=source, weights=backbones.load_weights(source))


def _store(split: str) -> ImageStore:
    """The task, with `split` in the place of the validation images."""
    cache = Path(tempfile.gettempdir()) / f"prunetune-{os.getuid()}" / "images"
    source = TaskSource(source=str(DATA), max_validation_images=700)
    store = open_store(source, resolution=RESOLUTION, cache_dir=cache)
    return replace(store, splits={**store.splits, "validation": store.splits[split]})


def _row(arm: Arm, learning_rate: float, results: Sequence[Result]) -> dict[str, Any]:
    errors = [100 * result.error for result in results]
    return {
        "ratio": arm.ratio,
        "batch_norm": arm.batch_norm,
        "ridge": arm.ridge,
        "learning_rate": learning_rate,
        "images": results[0].images,
        "setup_share": round(results[0].setup_flops / TRAIN_FLOPS, 3),
        "test_error_percent": round(statistics.mean(errors), 1),
        "deviation": round(statistics.stdev(errors), 1) if len(errors) > 1 else 0.0,
    }
