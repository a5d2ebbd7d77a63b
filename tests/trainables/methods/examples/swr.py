"""Examples of SWR."""

from tests.trainables.methods.budgets import LEVELS, disturbed
from tests.trainables.methods.method_examples import MethodExample, MethodExamples

EXAMPLE = MethodExample(
    method="swr",
    settings={"budget": 0.3, "granularity": "filter", "penalty": 1.0},
    levels=LEVELS,
)
LAYERS = EXAMPLE.but(settings={"granularity": "layer"})
EXAMPLES = MethodExamples(
    trained={
        "sgd": disturbed(EXAMPLE, "sgd"),
        "adamw_layers": disturbed(LAYERS, "adamw"),
        "schedule_free": disturbed(EXAMPLE, "schedule_free"),
    },
    off={"everything": EXAMPLE.but(settings={"budget": 1.0}, trainable_depth=0.5)},
    refused_depths=(0.0, 0.5),
    needed=("budget", "granularity", "penalty"),
    needs_weights=True,
)
