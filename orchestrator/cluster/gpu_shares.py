"""The share of a GPU that each trial takes: as much as its memory needs, so that many run on one.

Before the first trial, a few short ones measure on one of the cluster's GPUs what the dense
backbone takes. From then on a recipe's share is computed from its resolution, depth and batch. The
GPUs are taken to be alike: on a mixed cluster `resources.gpus` is better a number.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import ray
import torch
from ray.exceptions import RayTaskError

from orchestrator.cluster.config import ResourcesConfig
from search_spaces.recipe import Recipe
from trainables.backbones.source import BackboneSource
from trainables.costs.memory import TrialMemory, gpu_share
from trainables.errors import InputError
from trainables.learning.precision import training_device
from trainables.memory_probe import RecipeMemory, probe_memory


@dataclass(frozen=True, kw_only=True)
class ProbedGpu:
    """A GPU and what a recipe was measured to take of it."""

    memory: TrialMemory
    device_bytes: int


def gpu_shares(
    resources: ResourcesConfig, *, recipe: Recipe, source: BackboneSource, classes: int
) -> Callable[[Recipe], float]:
    """Tells what a trial takes of a GPU: the config's number, or with `auto` its recipe's share.

    With `auto` it waits for a GPU of the cluster to be probed with `recipe`, the dense one.
    """
    gpus = resources.gpus
    if gpus != "auto":
        return lambda _: gpus
    remote = ray.remote(_probe).options(num_cpus=resources.cpus, num_gpus=1)
    try:
        probed = ray.get(remote.remote(recipe.to_dict(), asdict(source), classes))
    except RayTaskError as error:
        raise error.cause from None
    memory = RecipeMemory(recipe, measured=probed.memory, source=source, classes=classes)
    return lambda recipe: share(recipe, memory, device_bytes=probed.device_bytes)


def share(recipe: Recipe, memory: RecipeMemory, *, device_bytes: int) -> float:
    """The share of a GPU for a trial of `recipe`."""
    try:
        peak_bytes = memory.peak_bytes(recipe)
    except InputError:  # infeasible at its resolution, which the trial will say
        peak_bytes = 0
    return gpu_share(peak_bytes, device_bytes=device_bytes)


def _probe(recipe: dict[str, Any], source: dict[str, Any], classes: int) -> ProbedGpu:
    device = training_device()
    memory = probe_memory(
        Recipe.from_dict(recipe), source=BackboneSource(**source), classes=classes, device=device
    )
    total = torch.cuda.get_device_properties(device).total_memory
    return ProbedGpu(memory=memory, device_bytes=total)
