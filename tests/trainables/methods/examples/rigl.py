"""Examples of RigL."""

from tests.trainables.methods.method_examples import (
    LATER,
    MethodExample,
    MethodExamples,
    with_every_optimizer,
)
from tests.trainables.recipes import LEVELS

EXAMPLE = MethodExample(
    method="rigl",
    settings={"sparsity": 0.8, "update_fraction": 0.4, "updates": 4},
    changes={"learning_rate": 0.05},
    levels=LATER,
)
EXAMPLES = MethodExamples(
    trained=with_every_optimizer(EXAMPLE),
    off={"dense": EXAMPLE.but(settings={"sparsity": 0.0}, levels=LEVELS[:2])},
    refused_depths=(0.0, 0.5),
    needed=("sparsity",),
    needs_weights=True,
)
