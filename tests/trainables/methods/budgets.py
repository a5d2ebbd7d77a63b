"""Methods that may change no more than a share of the backbone, and whether they keep to it."""

from typing import Any

from tests.trainables.methods.example_runs import ExampleRun
from tests.trainables.methods.method_examples import OPTIMIZERS, MethodExample
from trainables.backbones.layers import below_head

LEVELS = (1.2e8, 3e8, 5.3e8, 8e8)
"""Rungs of the small backbone at steps 2, 5, 9 and 13."""
FREE_LEVELS = (4e8, 1.2e9, 2.2e9, 3e9)
"""The like for a schedule-free optimiser, which pays for re-estimated norms at every rung."""


def disturbed(example: MethodExample, optimizer: str) -> MethodExample:
    """The example with one of `OPTIMIZERS` and all else that may disturb a delta."""
    changes: dict[str, Any] = {
        **OPTIMIZERS[optimizer],
        "learning_rate": 0.01 if optimizer == "sgd" else 0.001,
        "weight_decay": 0.01,
        "clip_norm": 1.0,
        "mixup": 0.2,
    }
    return example.but(levels=FREE_LEVELS if optimizer == "schedule_free" else LEVELS, **changes)


def assert_keeps_to_budget(run: ExampleRun, *, phases: tuple[float, ...]) -> None:
    """At every rung of a trial no more than the promised values differ, within the budget.

    `phases` are the shares of the steps at which the method changes what it does; rungs must lie
    before, between and after them.
    """
    weights, budget = run.example.weights(), run.example.settings["budget"]
    assert isinstance(budget, float)
    for measured, model in run.measured_models():
        below = below_head(model)
        moved = sum(int((value != weights[name]).sum()) for name, value in below.items())
        size = sum(value.numel() for value in below.values())
        promised = measured.updated_params - (measured.params - size)
        assert 0 < moved <= promised <= budget * size
    assert moved > 0.3 * promised  # on so few pixels many values only ever meet padding
    met = {sum(step >= phase * run.steps[-1] for phase in phases) for step in run.steps}
    assert met == set(range(len(phases) + 1)), "no rung lies in one of the phases"
