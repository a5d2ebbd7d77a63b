"""Recipes' memory from probes: on a CPU the allocator's account stands in for a GPU's."""

import gc
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from search_spaces.recipe import Optimizer, Recipe
from tests.trainables.recipes import SMALL, make_recipe
from trainables.backbones import build as backbones
from trainables.backbones.source import BackboneSource
from trainables.costs.memory import PeakMemory, TrialMemory, fit_peak
from trainables.errors import InputError
from trainables.learning.evaluation import EVALUATION_BATCH
from trainables.memory_probe import RecipeMemory, dense, probe_memory, probe_trial

CLASSES = 10
LARGEST = make_recipe(resolution=32, trainable_depth=1.0, augmentation=1.0)


def allocated_peak(run: Callable[[], object]) -> int:
    """Bytes that PyTorch's allocator had given out at most while `run` ran."""
    gc.collect()  # what earlier tests left, which would be taken for memory given back
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        run()
    events = [e for e in profiled.profiler.kineto_results.events() if e.name() == "[memory]"]
    live = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        live += event.nbytes()
        peak = max(peak, live)
    return peak


def trial_peak(recipe: Recipe, *, batch_size: int, validation_images: int) -> int:
    def run() -> None:
        trial = probe_trial(
            recipe,
            source=SMALL,
            classes=CLASSES,
            batch_size=batch_size,
            validation_images=validation_images,
            device=torch.device("cpu"),
        )
        trial.advance()
        assert trial.measurement is not None
        assert trial.measurement.images_seen >= 2 * batch_size  # more where pruned

    return allocated_peak(run)


@pytest.fixture(scope="module")
def memory() -> RecipeMemory:
    """Memory of recipes on the small backbone, probed at its largest recipe as a GPU would be."""
    measured = TrialMemory(
        training=fit_peak(
            lambda images: trial_peak(LARGEST, batch_size=images, validation_images=1),
            batches=(8, 24),
        ),
        evaluation=fit_peak(
            lambda images: trial_peak(LARGEST, batch_size=2, validation_images=images),
            batches=(64, EVALUATION_BATCH),
        ),
    )
    return RecipeMemory(LARGEST, measured=measured, source=SMALL, classes=CLASSES)


@pytest.mark.parametrize(
    ("changes", "slack"),
    [
        ({"batch_size": 64}, 1.1),
        ({"batch_size": 64, "optimizer": "adamw"}, 1.1),
        ({"batch_size": 16, "optimizer": "schedule_free_adamw", "schedule": "constant"}, 1.1),
        ({"batch_size": 128, "resolution": 24}, 1.5),
        ({"batch_size": 128, "trainable_depth": 0.5}, 1.5),
        ({"batch_size": 128, "pruning_ratio": 0.5, "width_rule": "all"}, 3.0),
    ],
)
def test_no_recipe_takes_more_than_is_predicted_and_dense_ones_not_much_less(
    memory: RecipeMemory, changes: dict[str, Any], slack: float
) -> None:
    recipe = make_recipe(**{"resolution": 32, "augmentation": 0.5, **changes})
    took = trial_peak(recipe, batch_size=recipe.batch_size, validation_images=EVALUATION_BATCH)
    predicted = memory.peak_bytes(recipe)
    assert 0.97 * took < predicted < slack * took


def test_an_optimiser_that_keeps_more_is_predicted_to_take_more(memory: RecipeMemory) -> None:
    light, heavy = (
        memory.peak_bytes(replace(LARGEST, optimizer=kind))
        for kind in (Optimizer.SGD, Optimizer.ADAMW)
    )
    weights = sum(p.nbytes for p in backbones.build(SMALL, num_classes=CLASSES).parameters())
    assert heavy - light == pytest.approx(weights, rel=0.2)


def test_the_dense_recipe_is_the_largest_but_for_its_batch() -> None:
    recipe = make_recipe(pruning_ratio=0.75, trainable_depth=0.25, resolution=16, batch_size=4)
    largest = dense(recipe, resolution=48)
    assert (largest.method, largest.settings) == ("full", {})
    assert largest.optimizer is Optimizer.ADAMW
    assert (largest.trainable_depth, largest.resolution, largest.batch_size) == (1, 48, 4)


def test_a_device_without_an_account_of_its_memory_is_refused() -> None:
    with pytest.raises(InputError, match=r"cannot be measured on cpu.*resources.gpus a number"):
        probe_memory(LARGEST, source=SMALL, classes=CLASSES, device=torch.device("cpu"))


def test_a_resolution_that_the_backbone_cannot_take_is_refused() -> None:
    held = PeakMemory(fixed_bytes=1, image_bytes=1)
    memory = RecipeMemory(
        LARGEST,
        measured=TrialMemory(training=held, evaluation=held),
        source=BackboneSource(model="test_convnext"),
        classes=CLASSES,
    )
    with pytest.raises(InputError, match="cannot be counted"):
        memory.peak_bytes(replace(LARGEST, resolution=8))
