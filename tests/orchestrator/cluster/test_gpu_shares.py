"""Shares of a GPU: from numbers to what Ray hands out (its GPUs here are counted, not there)."""

import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
from ray import tune

from orchestrator.cluster.config import ResourcesConfig
from orchestrator.cluster.gpu_shares import gpu_shares, share
from orchestrator.cluster.resources import concurrent_trials
from orchestrator.cluster.tune_adapters import sized
from orchestrator.config import SweepConfig, validate
from orchestrator.inputs import SweepInputs
from search_spaces.recipe import Recipe
from trainables.backbones.source import BackboneSource
from trainables.costs.memory import PeakMemory, TrialMemory
from trainables.errors import InputError
from trainables.memory_probe import RecipeMemory, dense

SOURCE = BackboneSource(model="test_resnet")
GIGABYTE = 1 << 30
CONFIG: dict[str, Any] = {
    "name": "shares",
    "task": {"source": "digits", "resolution": 32, "mirror": False, "max_train_images": 200},
    "backbone": {"model": "test_resnet"},
    "budget": {"trials": 2},
    "rungs": {"min_flops": 1e9, "max_flops": 1e10},
    "resources": {"gpus": "auto"},
}


@pytest.fixture
def inputs(tmp_path: Path) -> SweepInputs:
    storage = {"folder": str(tmp_path / "sweep"), "cache": str(tmp_path / "cache")}
    return SweepInputs(validate(SweepConfig, {**CONFIG, "storage": storage}, what="the test"))


@pytest.fixture
def recipe(inputs: SweepInputs) -> Recipe:
    return dense(inputs.recipe(0), resolution=32)


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """Four CPUs, and one GPU that Ray believes in."""
    ray.init(
        address="local",
        num_cpus=4,
        num_gpus=1,
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
    )
    yield
    ray.shutdown()


def memory(recipe: Recipe, *, fixed_bytes: float, image_bytes: float) -> RecipeMemory:
    """The memory of `recipe`, measured as that of the largest."""
    training = PeakMemory(fixed_bytes=fixed_bytes, image_bytes=image_bytes)
    evaluation = PeakMemory(fixed_bytes=fixed_bytes, image_bytes=image_bytes / 100)
    measured = TrialMemory(training=training, evaluation=evaluation)
    return RecipeMemory(recipe, measured=measured, source=SOURCE, classes=10)


def changed(recipe: Recipe, **changes: Any) -> Recipe:
    return Recipe.from_dict(recipe.to_dict() | changes)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"batch_size": 16}, 1 / 8),  # 1.6 GB and its context: 9 of 20 GB
        ({"batch_size": 64}, 1 / 2),  # 6.4 GB: 2
        ({"batch_size": 64, "resolution": 16}, 1 / 8),  # a quarter of the pixels: 8
        ({"batch_size": 256}, 1),  # 25.6 GB: none, but it may try with half its batch
    ],
)
def test_the_share_follows_what_a_recipe_takes(
    recipe: Recipe, changes: dict[str, Any], expected: float
) -> None:
    known = memory(recipe, fixed_bytes=1 << 20, image_bytes=GIGABYTE / 10)
    given = share(changed(recipe, **changes), known, device_bytes=20 * GIGABYTE)
    assert given == expected


def test_a_recipe_that_no_trial_can_run_takes_little() -> None:
    recipe = Recipe(
        method="filter_pruning",
        learning_rate=0.1,
        weight_decay=0.0,
        batch_size=8,
        label_smoothing=0.0,
        layer_decay=1.0,
        trainable_depth=1.0,
        resolution=32,
        augmentation=1.0,
        target_flops=1e9,
    )
    source = BackboneSource(model="test_convnext")
    held = PeakMemory(fixed_bytes=GIGABYTE, image_bytes=GIGABYTE)
    known = RecipeMemory(
        recipe, measured=TrialMemory(training=held, evaluation=held), source=source, classes=10
    )
    assert share(recipe, known, device_bytes=80 * GIGABYTE) == 1
    assert share(changed(recipe, resolution=8), known, device_bytes=80 * GIGABYTE) < 0.02


def test_a_number_is_every_trials_share(recipe: Recipe) -> None:
    shares = gpu_shares(ResourcesConfig(gpus=0.3), recipe=recipe, source=SOURCE, classes=10)
    assert shares(recipe) == 0.3


@pytest.mark.usefixtures("cluster")
def test_auto_is_refused_where_ray_counts_gpus_that_are_not_there(recipe: Recipe) -> None:
    with pytest.raises(InputError, match=r"^The peak memory of a trial cannot be measured on cpu"):
        gpu_shares(ResourcesConfig(gpus="auto"), recipe=recipe, source=SOURCE, classes=10)


@pytest.mark.usefixtures("cluster")
def test_as_many_trials_as_there_are_cpus_may_want_a_share() -> None:
    assert concurrent_trials(ResourcesConfig(gpus="auto")) == 4
    assert concurrent_trials(ResourcesConfig(gpus=0.5)) == 2
    with pytest.raises(InputError, match="2 GPUs and the cluster has 4 and 1"):
        concurrent_trials(ResourcesConfig(gpus=2.0))


def reporting_trainable() -> type[tune.Trainable]:
    """Made here, so that it is sent to the workers, which cannot import a test."""

    class Assigned(tune.Trainable):
        """Reports what Ray has given to its trial, and in which process."""

        def step(self) -> dict[str, Any]:
            given = ray.get_runtime_context().get_assigned_resources()
            return {"gpus": given["GPU"], "pid": os.getpid(), "done": True}

        def reset_config(self, new_config: dict[str, Any]) -> bool:
            return True

        def save_checkpoint(self, checkpoint_dir: str) -> None:
            """Nothing to keep."""

    return Assigned


@pytest.mark.usefixtures("cluster")
def test_every_trial_gets_its_share_and_actors_are_kept(tmp_path: Path) -> None:
    shares = [0.5, 0.25, 0.25, 0.25, 0.25, 0.25, 0.5, 0.5]
    grid = tune.Tuner(
        sized(reporting_trainable(), cpus=1),
        param_space={"gpus": tune.grid_search(shares)},
        tune_config=tune.TuneConfig(reuse_actors=True, max_concurrent_trials=2),
        run_config=tune.RunConfig(storage_path=str(tmp_path), verbose=0),
    ).fit()
    results = [grid[number] for number in range(len(grid))]
    assert [(result.config or {})["gpus"] for result in results] == shares
    measured = [result.metrics or {} for result in results]
    assert [metrics["gpus"] for metrics in measured] == shares
    assert len({metrics["pid"] for metrics in measured}) < len(shares)
