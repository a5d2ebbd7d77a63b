"""Examples of filter pruning."""

from tests.trainables.methods.method_examples import MethodExample, MethodExamples
from tests.trainables.recipes import LEVELS
from trainables.rungs import rung_levels

EXAMPLE = MethodExample(
    method="filter_pruning",
    settings={
        "pruning_ratio": 0.5,
        "criterion": "l2",
        "width_rule": "inner",
        "scope": "layer",
        "batch_norm_repair": True,
        "ridge_repair": False,
    },
)
DENSE = EXAMPLE.but(settings={"pruning_ratio": 0.0, "batch_norm_repair": False})
EXAMPLES = MethodExamples(
    trained={
        "inner": EXAMPLE,
        "repaired": EXAMPLE.but(
            settings={"width_rule": "all", "scope": "global", "ridge_repair": True},
            levels=rung_levels(min_flops=4e8, max_flops=6.4e8, per_decade=10),
        ),
    },
    off={"dense": DENSE.but(levels=LEVELS[:2])},
    needed=("pruning_ratio",),
)
