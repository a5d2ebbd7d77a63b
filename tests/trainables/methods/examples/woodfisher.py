"""Examples of WoodFisher."""

from tests.trainables.methods.method_examples import (
    LATER,
    OPTIMIZERS,
    MethodExample,
    MethodExamples,
)
from tests.trainables.recipes import LEVELS

EXAMPLE = MethodExample(
    method="woodfisher",
    settings={
        "sparsity": 0.9,
        "scope": "global",
        "block_size": 16,
        "samples": 2,
        "dampening": 1e-5,
        "batch_norm_repair": False,
    },
    levels=LATER,
)
"""Its rungs lie after the algebra, and after a schedule-free average has settled."""
HEAD_LEVELS = (3.9e8, 3.95e8, 4.2e8)
EXAMPLES = MethodExamples(
    trained={
        "sgd": EXAMPLE.but(weight_decay=0.1),
        "schedule_free": EXAMPLE.but(**OPTIMIZERS["schedule_free"]),
        "head": EXAMPLE.but(trainable_depth=0.0, levels=HEAD_LEVELS),
    },
    off={"dense": EXAMPLE.but(settings={"sparsity": 0.0}, levels=LEVELS[:2])},
    needed=("sparsity",),
    needs_weights=True,
    smaller={"samples": 2, "block_size": 16, "batch_norm_repair": False},
)
