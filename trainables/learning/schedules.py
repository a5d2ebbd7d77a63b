"""Learning-rate schedules."""

import math

import torch

from search_spaces.recipe import Schedule

WARMUP_SHARE = 0.1
"""Share of the steps over which the learning rate rises linearly to its peak."""
DECAY_SHARE = 0.2
"""Share of the steps over which warm-up-stable-decay falls to zero."""


def set_learning_rate(
    optimizer: torch.optim.Optimizer, *, schedule: Schedule, step: int, total_steps: int
) -> None:
    """Sets every group's `lr` to its `peak_lr` times the schedule's factor at `step`, from 0."""
    factor = schedule_factor(schedule, step=step, total_steps=total_steps)
    for group in optimizer.param_groups:
        group["lr"] = group["peak_lr"] * factor


def schedule_factor(schedule: Schedule, *, step: int, total_steps: int) -> float:
    """The share of the peak at `step`: a linear warm-up, then what the schedule says.

    With p, 0-1, the share of the steps after the warm-up: cosine (1 + cos πp) / 2 (arXiv
    1608.03983), linear 1 - p. Warm-up-stable-decay (arXiv 2404.06395) ends with 1 - √q, q being
    the share of its last `DECAY_SHARE` of all steps: the best of the forms that arXiv 2405.18392
    compares.
    """
    warmup = max(1, round(WARMUP_SHARE * total_steps))
    if step < warmup:
        return (step + 1) / warmup
    progress = (step - warmup) / max(1, total_steps - warmup)
    match schedule:
        case Schedule.CONSTANT:
            return 1.0
        case Schedule.COSINE:
            return 0.5 * (1 + math.cos(math.pi * progress))
        case Schedule.LINEAR:
            return 1 - progress
        case Schedule.WARMUP_STABLE_DECAY:
            decay = round(DECAY_SHARE * total_steps)
            stable = total_steps - decay
            return 1 - math.sqrt((step - stable) / decay) if step > stable else 1.0
