"""The worth of stored features where the head alone is trained.

Eight recipes on one frozen MobileNetV2 with ImageNet weights, photos of clothes at 96 pixels. The
plain path, through the whole model at every step, is what a recipe takes that augments: here by so
little that no pixel moves. Data and weights lie beside a developer's checkout.

Once with equal steps, both paths in turn, for wall time and for agreement; and once with equal
training FLOPs, which are charged to every trial as if it ran alone."""

import statistics
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from search_spaces.recipe import Recipe
from tests.benchmarks.publish import publish
from trainables.backbones.build import Backbone, load_weights
from trainables.backbones.source import BackboneSource
from trainables.batches.features import EXTRACTION_SHARE
from trainables.finetune import Finetuning
from trainables.images.store import ImageStore, open_store
from trainables.images.tasks import TaskSource
from trainables.measurement import Measurement

IMAGES = 160
VALIDATION_IMAGES = 100
BATCH = 32
STEPS = 5 * IMAGES // BATCH
"""Steps of the comparison at equal steps."""
RECIPES = tuple((rate, decay) for rate in (1e-4, 3e-4, 1e-3, 3e-3) for decay in (1e-5, 1e-3))
"""Learning rate and weight decay."""
FEATURES, PLAIN = 0.0, 1e-12
"""Strengths of the augmentation with which a recipe takes either path."""
TASK = TaskSource(
    source="../shared/data/clothing10",
    max_train_images=IMAGES,
    max_validation_images=VALIDATION_IMAGES,
)
MODEL = BackboneSource(
    model="mobilenetv2_100",
    weights="../shared/weights/mobilenetv2_100_imagenet_qat.safetensors",
    args={"pad_type": "same"},
    mean=(0.5, 0.5, 0.5),
    std=(0.5, 0.5, 0.5),
)
RESOLUTION = 96
NO_PRUNING = {"pruning_ratio": 0.0}


@dataclass(frozen=True, kw_only=True)
class Ran:
    """A trial that was run."""

    measurement: Measurement
    seconds: float
    """From building the model to the measurement."""


@dataclass(frozen=True, kw_only=True)
class Runner:
    """Runs recipes, with a feature store of its own that is empty at first."""

    backbone: Backbone
    store: ImageStore
    target_flops: float

    def run(self, number: int, *, augmentation: float, steps: int | None = None) -> Ran:
        """Recipe `number` to its target, or until it has taken `steps`."""
        started = time.perf_counter()
        trial = _trial(self, number, augmentation=augmentation)
        if steps is not None:
            trial.stops = (replace(trial.stops[-1], steps=steps),)
        trial.advance()
        assert trial.measurement is not None  # nothing here diverges
        return Ran(measurement=trial.measurement, seconds=time.perf_counter() - started)


def main() -> None:
    """Runs both comparisons and prints the tables."""
    torch.set_num_threads(1)
    backbone = Backbone(source=MODEL, weights=load_weights(MODEL))
    with tempfile.TemporaryDirectory() as folder:
        store = open_store(TASK, resolution=RESOLUTION, cache_dir=Path(folder))
        flops = _flops_of_all_features(backbone, store)
        runners = [
            Runner(
                backbone=backbone,
                store=replace(store, folder=Path(folder) / part / store.folder.name),
                target_flops=flops,
            )
            for part in ("warm-up", "steps", "compute")
        ]
        for augmentation in (FEATURES, PLAIN):
            runners[0].run(0, augmentation=augmentation, steps=2)
        by_steps = _in_turn(runners[1], steps=STEPS)
        by_compute = _in_turn(runners[2], steps=None)
    result = {
        "what": f"{len(RECIPES)} trials that train the head of {MODEL.model} on {IMAGES} photos "
        f"of clothes at {RESOLUTION} pixels, one thread, one run each",
        **_at_equal_steps(*by_steps),
        **_at_equal_compute(*by_compute),
    }
    publish("head_only", title="What stored features are worth", result=result)


def _in_turn(runner: Runner, *, steps: int | None) -> tuple[list[Ran], list[Ran]]:
    """Every recipe on stored features and on the plain path."""
    stored, plain = [], []
    for number in range(len(RECIPES)):
        stored.append(runner.run(number, augmentation=FEATURES, steps=steps))
        plain.append(runner.run(number, augmentation=PLAIN, steps=steps))
    return stored, plain


def _at_equal_steps(stored: list[Ran], plain: list[Ran]) -> dict[str, object]:
    pairs = [(a.measurement, b.measurement) for a, b in zip(stored, plain, strict=True)]
    return {
        "steps": STEPS,
        "plain_seconds": round(sum(ran.seconds for ran in plain), 1),
        "stored_seconds": round(sum(ran.seconds for ran in stored), 1),
        "speed_up": round(_seconds(plain) / _seconds(stored), 2),
        "speed_up_of_a_trial_that_extracts": round(plain[0].seconds / stored[0].seconds, 2),
        "median_speed_up_of_the_others": round(
            statistics.median(
                b.seconds / a.seconds for a, b in zip(stored[1:], plain[1:], strict=True)
            ),
            1,
        ),
        "largest_val_error_difference": max(abs(a.val_error - b.val_error) for a, b in pairs),
        "largest_val_loss_difference": f"{max(abs(a.val_loss - b.val_loss) for a, b in pairs):.1e}",
    }


def _at_equal_compute(stored: list[Ran], plain: list[Ran]) -> dict[str, object]:
    measured = [ran.measurement for ran in stored]
    charged = sum(m.train_flops for m in measured)
    billed = sum(m.executed_flops for m in measured)
    extraction = IMAGES * measured[0].inference_flops
    return {
        "plain_train_flops_a_trial": f"{plain[0].measurement.train_flops:.3g}",
        "charged_flops": f"{charged:.3g}",
        "billed_flops": f"{billed:.3g}",
        "extractions_billed": round(len(RECIPES) - (charged - billed) / extraction, 3),
        "stored_seconds_at_equal_compute": round(_seconds(stored), 1),
        "plain_seconds_at_equal_compute": round(_seconds(plain), 1),
        "trials": [
            {
                "learning_rate": rate,
                "weight_decay": decay,
                "plain_val_error": round(b.measurement.val_error, 3),
                "stored_val_error": round(a.measurement.val_error, 3),
                "plain_images_seen": b.measurement.images_seen,
                "stored_images_seen": a.measurement.images_seen,
            }
            for (rate, decay), a, b in zip(RECIPES, stored, plain, strict=True)
        ],
    }


def _seconds(ran: list[Ran]) -> float:
    return sum(one.seconds for one in ran)


def _flops_of_all_features(backbone: Backbone, store: ImageStore) -> float:
    """Training FLOPs that pay for the features of every image and for all passes over them."""
    probe = _trial(
        Runner(backbone=backbone, store=store, target_flops=1e15), 0, augmentation=FEATURES
    )
    return probe.stops[-1].train_flops / EXTRACTION_SHARE


def _trial(runner: Runner, number: int, *, augmentation: float) -> Finetuning:
    rate, decay = RECIPES[number]
    return Finetuning(
        recipe=Recipe(
            method="filter_pruning",
            settings=NO_PRUNING,
            learning_rate=rate,
            weight_decay=decay,
            batch_size=BATCH,
            label_smoothing=0.0,
            layer_decay=1.0,
            trainable_depth=0.0,
            resolution=RESOLUTION,
            augmentation=augmentation,
            target_flops=runner.target_flops,
        ),
        seed=number,
        backbone=runner.backbone,
        store=runner.store,
        levels=(runner.target_flops,),
        mirror=False,
        device=torch.device("cpu"),
    )
