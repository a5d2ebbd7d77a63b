"""The time that pruning saves, compared with the FLOPs that it saves.

Whole training steps of trials are timed: augmentation, forward, backward, optimiser and average,
in the precision and layout that the device takes. The dense model and its pruned versions run turn
by turn, a few steps each, so that whatever else the machine does falls on all of them.
"""

import os
import statistics
from typing import Any

import torch

from tests.benchmarks.publish import publish
from tests.benchmarks.trials import next_pace, noise_store, noise_trial
from trainables.learning.precision import training_device

MODELS = ("resnet18", "resnet50", "mobilenetv2_100")
KEEPS = (0.75, 0.5, 0.25)
WIDTH_RULES = ("inner", "all")
BATCHES = {"cpu": {64: 32, 224: 8}, "cuda": {64: 256, 224: 128}}
"""Images a step, by device and pixels."""
TURN_FLOPS = {"cpu": 6e10, "cuda": 3e13}
"""FLOPs of each turn, which has one step at least: about half a second."""
ROUNDS = 5


def main() -> None:
    """Times all and prints the table."""
    torch.set_num_threads(os.cpu_count() or 1)
    device = training_device()
    rows = [
        row
        for resolution, batch_size in BATCHES[device.type].items()
        for model in MODELS
        for row in compare(model, resolution=resolution, batch_size=batch_size, device=device)
    ]
    resnets = [row["share_of_ideal"] for row in rows if row["model"].startswith("resnet")]
    result = {
        "what": f"training steps of pruned trials against the dense one's, medians of {ROUNDS} "
        "interleaved rounds; the ideal speed-up is the ratio of their FLOPs",
        "device": torch.cuda.get_device_name() if device.type == "cuda" else "cpu",
        "threads": torch.get_num_threads(),
        "resnets_least_share_of_ideal": min(resnets),
        "resnets_median_share_of_ideal": statistics.median(resnets),
        "speed_ups": rows,
    }
    publish("speed_up", title="Speed-up of training steps over FLOP reduction", result=result)


def compare(
    model: str, *, resolution: int, batch_size: int, device: torch.device
) -> list[dict[str, Any]]:
    """A row for each width rule and share of filters kept."""
    variants = [(rule, keep) for rule in WIDTH_RULES for keep in KEEPS]
    store = noise_store(resolution=resolution, train_images=4 * batch_size)
    flops = TURN_FLOPS[device.type]
    trials = [
        noise_trial(
            model,
            store=store,
            batch_size=batch_size,
            device=device,
            levels=tuple(flops * turn for turn in range(1, 1000)),
            keep=keep,
            width_rule=rule,
        )
        for rule, keep in [("inner", 1.0), *variants]
    ]
    rounds = [[next_pace(trial) for trial in trials] for _ in range(1 + ROUNDS)][1:]
    rows = []
    for column, (rule, keep) in enumerate(variants, start=1):
        speed_up = statistics.median(paces[0].seconds / paces[column].seconds for paces in rounds)
        reduction = rounds[0][0].flops / rounds[0][column].flops
        rows.append(
            {
                "model": model,
                "pixels": resolution,
                "batch": batch_size,
                "width_rule": rule,
                "keep": keep,
                "flop_reduction": round(reduction, 2),
                "speed_up": round(speed_up, 2),
                "share_of_ideal": round(speed_up / reduction, 3),
            }
        )
    return rows


if __name__ == "__main__":
    main()
