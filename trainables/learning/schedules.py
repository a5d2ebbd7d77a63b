"""Learning-rate schedules."""

import math

import torch

from search_spaces.recipe import Schedule

WARMUP_SHARE = 0.1
"""Share of the steps over which a rate rises linearly to its peak that falls from then on."""
WARMUP_STEPS = 10
"""Steps over which one rises that then stays: however many follow, so that a run towards more
compute begins as one towards less does."""
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
    if schedule in (Schedule.CONSTANT, Schedule.WARMUP_STABLE_DECAY):
        risen = min(1.0, (step + 1) / WARMUP_STEPS)
        stable = steps_before_decay(schedule, total_steps=total_steps)
        if step <= stable:
            return risen
        return risen * (1 - math.sqrt((step - stable) / (total_steps - stable)))
    warmup = max(1, round(WARMUP_SHARE * total_steps))
    if step < warmup:
        return (step + 1) / warmup
    progress = (step - warmup) / max(1, total_steps - warmup)
    if schedule is Schedule.LINEAR:
        return 1 - progress
    return 0.5 * (1 + math.cos(math.pi * progress))


def steps_before_decay(schedule: Schedule, *, total_steps: int) -> int:
    """How many of the first steps have the same rate whatever `total_steps` is."""
    match schedule:
        case Schedule.CONSTANT:
            return total_steps
        case Schedule.WARMUP_STABLE_DECAY:
            return total_steps - round(DECAY_SHARE * total_steps)
        case Schedule.COSINE | Schedule.LINEAR:
            return 0
