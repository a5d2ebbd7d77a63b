"""Training steps on the CPU with channels last against the contiguous layout.

What `trainables.learning.precision` goes by on a CPU: the same learner takes the same steps in both
layouts, by turns, so that a busy machine slows both alike.
"""

import copy
import os
import time
from statistics import median
from typing import Any

import timm
import torch
from torch import nn

from search_spaces.recipe import Recipe
from tests.benchmarks.publish import publish
from trainables.backbones.layers import classifier_name
from trainables.learning.freezing import train_mode
from trainables.learning.learner import Learner
from trainables.learning.precision import Precision
from trainables.pruning import PruningPlan, WidthRule, prune

CASES = (
    ("resnet18", 32, 32, 0.0),
    ("resnet18", 64, 32, 0.0),
    ("resnet18", 64, 32, 0.5),
    ("resnet18", 64, 32, 0.75),
    ("resnet50", 64, 32, 0.0),
    ("resnet50", 64, 32, 0.5),
    ("resnet50", 64, 32, 0.75),
    ("mobilenetv2_100", 64, 32, 0.0),
    ("mobilenetv2_100", 64, 32, 0.75),
    ("convnext_atto", 64, 16, 0.0),
)
"""Model, resolution in pixels, batch size, pruning ratio of all widths."""
LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
REPEATS = 9
CLASSES = 10


def main() -> None:
    """Times every case and prints the table."""
    torch.set_num_threads(os.cpu_count() or 1)
    cases = [compare(*case) for case in CASES]
    speed_ups = [row["speed_up"] for row in cases]
    result = {
        "what": "whole training steps (SGD, float32, all cores): seconds contiguous over seconds "
        f"channels last, medians of {REPEATS} interleaved repeats after 2 of warm-up",
        "least_speed_up": min(speed_ups),
        "largest_speed_up": max(speed_ups),
        "cases": cases,
    }
    publish("memory_format", title="Channels last on the CPU", result=result)


def compare(name: str, resolution: int, batch_size: int, ratio: float) -> dict[str, Any]:
    """Median seconds of a step in both layouts."""
    model = timm.create_model(name, num_classes=CLASSES)
    plan = PruningPlan(ratio=ratio, width_rule=WidthRule.ALL)
    prune(model, plan, head=classifier_name(model), resolution=resolution, seed=0)
    train_mode(model)
    learners = {
        layout: _learner(copy.deepcopy(model), memory_format)
        for layout, memory_format in LAYOUTS.items()
    }
    images = torch.randn(batch_size, 3, resolution, resolution)
    labels = torch.arange(batch_size) % CLASSES
    seconds: dict[str, list[float]] = {layout: [] for layout in LAYOUTS}
    for step in range(REPEATS + 2):
        for layout, learner in learners.items():
            started = time.perf_counter()
            learner.learn(images, labels, step=step, total_steps=100)
            seconds[layout].append(time.perf_counter() - started)
    medians = {layout: median(found[2:]) for layout, found in seconds.items()}
    return {
        "model": name,
        "resolution": resolution,
        "batch_size": batch_size,
        "pruning_ratio": ratio,
        **{f"{layout}_seconds": round(value, 4) for layout, value in medians.items()},
        "speed_up": round(medians["contiguous"] / medians["channels_last"], 2),
    }


def _learner(model: nn.Module, memory_format: torch.memory_format) -> Learner:
    recipe = Recipe(
        method="filter_pruning",
        settings={},
        learning_rate=1e-3,
        weight_decay=1e-4,
        batch_size=1,
        label_smoothing=0.1,
        layer_decay=1.0,
        trainable_depth=1.0,
        resolution=8,
        augmentation=0.0,
        target_flops=1.0,
    )
    return Learner(
        model,
        recipe,
        trained=model,
        seed=0,
        class_weights=None,
        precision=Precision(memory_format=memory_format),
    )


if __name__ == "__main__":
    main()
