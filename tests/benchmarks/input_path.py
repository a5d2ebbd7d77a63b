"""The cost of images before the network sees them.

A trial's own batches are timed at full speed, gathered from the store, augmented and normalised,
and next to them, turn by turn, whole training steps. The share of a step that the network waits is
the ratio of the two. On a CPU that is exact: the input is prepared on the cores that train, in
between steps. On a GPU it is an upper bound: what the host does there overlaps with the network.
"""

import os
import statistics
import time
from typing import Any

import torch

from tests.benchmarks.publish import publish
from tests.benchmarks.trials import next_pace, noise_recipe, noise_store, noise_trial
from trainables.batches.images import ImageBatches
from trainables.costs.flops import StepCost
from trainables.images.augment import model_inputs
from trainables.images.store import ImageStore
from trainables.learning.precision import training_device

MODELS = ("resnet18", "resnet50", "mobilenetv2_100")
BATCHES = {"cpu": {64: 64, 224: 16}, "cuda": {64: 256, 224: 128}}
"""Images a step, by device and pixels."""
TURN_FLOPS = {"cpu": 6e10, "cuda": 3e13}
TURN_BATCHES = 8
ROUNDS = 5
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def main() -> None:
    """Times both and prints the table."""
    torch.set_num_threads(os.cpu_count() or 1)
    device = training_device()
    rows = [
        share_of_step(model, resolution=resolution, batch_size=batch_size, device=device)
        for resolution, batch_size in BATCHES[device.type].items()
        for model in MODELS
    ]
    result = {
        "what": "gathering, augmenting (strength 0.5) and normalising uint8 images, alone and as "
        f"a share of a training step; medians of {ROUNDS} interleaved rounds",
        "device": torch.cuda.get_device_name() if device.type == "cuda" else "cpu",
        "threads": torch.get_num_threads(),
        "largest_share_waiting": max(row["share_waiting"] for row in rows),
        "shares": rows,
    }
    publish("input_path", title="What the data path takes", result=result)


def share_of_step(
    model: str, *, resolution: int, batch_size: int, device: torch.device
) -> dict[str, Any]:
    """Images a second of the data path, and the share of `model`'s training steps that it takes."""
    store = noise_store(resolution=resolution, train_images=16 * batch_size)
    batches = _batches(store, batch_size=batch_size, device=device)
    flops = TURN_FLOPS[device.type]
    trial = noise_trial(
        model,
        store=store,
        batch_size=batch_size,
        device=device,
        levels=tuple(flops * turn for turn in range(1, 1000)),
    )
    alone, shares = [], []
    for _ in range(1 + ROUNDS):
        step = next_pace(trial).seconds * batch_size
        alone.append(_seconds(batches, device=device))
        shares.append(alone[-1] / step)
    return {
        "model": model,
        "pixels": resolution,
        "batch": batch_size,
        "images_per_second_alone": round(batch_size / statistics.median(alone[1:])),
        "share_waiting": round(statistics.median(shares[1:]), 4),
    }


def _batches(store: ImageStore, *, batch_size: int, device: torch.device) -> ImageBatches:
    return ImageBatches(
        recipe=noise_recipe(store, batch_size=batch_size, target_flops=1.0),
        seed=0,
        store=store,
        inputs=lambda images: model_inputs(
            images.to(device), resolution=store.resolution, mean=MEAN, std=STD
        ),
        cost=StepCost(forward_flops=0.0, train_flops=0.0),  # not asked for
        inference_flops=0.0,
        mirror=True,
        device=device,
    )


def _seconds(batches: ImageBatches, *, device: torch.device) -> float:
    """The seconds that one batch takes."""
    started = time.perf_counter()
    for step in range(TURN_BATCHES):
        batches.train(step)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return (time.perf_counter() - started) / TURN_BATCHES


if __name__ == "__main__":
    main()
