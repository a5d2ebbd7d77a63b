"""The pace of a sweep's trials on this machine, from a few steps or passes of its own recipes."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn

from orchestrator.inputs import SweepInputs
from orchestrator.search.rehearsal import Pace
from trainables.errors import InfeasibleError, InputError
from trainables.finetune import Finetuning
from trainables.learning.precision import training_device

TRIED_RECIPES = 8
"""Recipes that are drawn to find some that can be timed."""
TIMED_RECIPES = 3
"""Recipes whose steps are timed."""
SECONDS = 1.0
"""Time after which no further steps of a recipe are taken."""
PASSED_IMAGES = 32
"""Images of a forward pass that is timed."""


@dataclass(frozen=True, kw_only=True)
class _Timing:
    """A recipe's first work."""

    flops: float
    seconds: float
    eval_flops: float
    set_up_seconds: float


def measure_pace(inputs: SweepInputs) -> Pace:
    """Times recipes drawn from the space, each for a second or two, or for one longer step.

    Those that first run their frozen trunk over all images are timed by forward passes, which are
    nearly all that they do. Raises `InputError` when no recipe can be timed.
    """
    timed: list[_Timing] = []
    with _threads(inputs.config.resources.cpus):
        for seed in range(TRIED_RECIPES):
            timing = _timing(inputs, seed)
            if timing is not None:
                timed.append(timing)
            if len(timed) == TIMED_RECIPES:
                break
    if not timed:
        raise InputError(
            f"None of {TRIED_RECIPES} recipes drawn from the space can be timed, because they take "
            "no step; raise rungs.max_flops or widen space.ranges to see what the budget buys."
        )
    return Pace(
        flops_per_second=sum(t.flops for t in timed) / sum(t.seconds for t in timed),
        eval_flops=sum(t.eval_flops for t in timed) / len(timed),
        set_up_seconds=min(t.set_up_seconds for t in timed),
    )


def _timing(inputs: SweepInputs, seed: int) -> _Timing | None:
    """Times a recipe; None if it cannot be timed."""
    config = inputs.config
    source_task = (lambda: inputs.source_store) if config.source_task else None
    recipe = inputs.recipe(seed)
    begun = time.perf_counter()
    try:
        finetuning = Finetuning(
            recipe=recipe,
            seed=seed,
            backbone=inputs.backbone,
            store=inputs.store,
            levels=inputs.problem.rungs,
            mirror=config.task.mirror,
            device=training_device(),
            source_task=source_task,
        )
    except InfeasibleError:
        return None
    set_up_seconds = time.perf_counter() - begun
    if finetuning.prices.setup_flops:
        images, seconds = _timed_passes(finetuning.model, side=recipe.resolution)
        flops = images * finetuning.prices.inference_flops
    else:
        steps, seconds = _timed_steps(finetuning)
        flops = steps * finetuning.prices.step_flops
    return _Timing(
        flops=flops,
        seconds=seconds,
        eval_flops=finetuning.prices.eval_flops,
        set_up_seconds=set_up_seconds,
    )


def _timed_steps(finetuning: Finetuning) -> tuple[int, float]:
    """Takes steps for a second or two; the first, which warms up, is left out if others follow.

    They are taken in runs that double, because a trial does not look at the loss after each. A run
    whose loss stops being finite is not counted.
    """
    last = finetuning.stops[-1].steps
    begun = time.perf_counter()
    finetuning.train_to(1)
    first = time.perf_counter() - begun
    if last == 1 or first > SECONDS:
        return 1, first
    taken, seconds, begun = 1, 0.0, time.perf_counter()
    while taken < last and seconds < SECONDS and finetuning.train_to(min(last, 2 * taken)):
        taken, seconds = min(last, 2 * taken), time.perf_counter() - begun
    return (taken - 1, seconds) if taken > 1 else (1, first)


def _timed_passes(model: nn.Module, *, side: int) -> tuple[int, float]:
    """Passes images [B, 3, side, side] through the model for a second, after one to warm up."""
    images = torch.zeros(PASSED_IMAGES, 3, side, side, device=training_device())
    passed, seconds = 0, 0.0
    with torch.inference_mode():
        model(images).sum().item()
        begun = time.perf_counter()
        while seconds < SECONDS:
            model(images).sum().item()  # waits for the device
            passed, seconds = passed + PASSED_IMAGES, time.perf_counter() - begun
    return passed, seconds


@contextmanager
def _threads(count: int) -> Iterator[None]:
    """Gives torch as many threads as a trial has."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
