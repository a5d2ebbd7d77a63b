"""Examples of powerpropagation."""

from tests.trainables.methods.method_examples import (
    OPTIMIZERS,
    MethodExample,
    MethodExamples,
    with_every_optimizer,
)
from tests.trainables.recipes import LEVELS

AT_A_RUNG = 5 / 13
"""Share of the steps at a rung: the trial of `LEVELS` has 13, and its rungs are at 3, 5, 8, 13."""
EXAMPLE = MethodExample(
    method="powerpropagation",
    settings={"alpha": 3.0, "sparsity": 0.8, "prune_at": 0.5},
    changes={"schedule": "constant"},
)
EXAMPLES = MethodExamples(
    trained={
        **with_every_optimizer(EXAMPLE),
        "sgd": EXAMPLE.but(settings={"prune_at": AT_A_RUNG}, **OPTIMIZERS["sgd"]),
    },
    off={"plain": EXAMPLE.but(settings={"alpha": 1.0, "sparsity": 0.0}, levels=LEVELS[:2])},
    refused_depths=(0.0, 0.5),
    needed=("alpha", "sparsity"),
    needs_weights=True,
)
