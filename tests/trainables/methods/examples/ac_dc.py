"""Examples of AC/DC."""

from tests.trainables.methods.method_examples import (
    MethodExample,
    MethodExamples,
    with_every_optimizer,
)
from trainables.rungs import rung_levels

EXAMPLE = MethodExample(
    method="ac_dc",
    settings={"sparsity": 0.9, "cycles": 2, "warm_up": 0.2, "finish": 0.3},
    levels=rung_levels(min_flops=5e8, max_flops=1.2e9, per_decade=10),
)
"""Its rungs lie in the first compressed phase, the second, and the last."""
EXAMPLES = MethodExamples(
    trained=with_every_optimizer(EXAMPLE),
    off={"dense": EXAMPLE.but(settings={"sparsity": 0.0})},
    refused_depths=(0.0, 0.5),
    needed=("sparsity",),
    needs_weights=True,
)
