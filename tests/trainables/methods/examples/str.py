"""Examples of soft threshold reparametrisation."""

from tests.trainables.methods.method_examples import OPTIMIZERS, MethodExample, MethodExamples
from tests.trainables.recipes import LEVELS
from trainables.rungs import rung_levels

EXAMPLE = MethodExample(method="str", settings={"initial_threshold": 0.3, "final_threshold": 2.0})
EXAMPLES = MethodExamples(
    trained={
        # the zeros of step 0 must be known after a rung, and those of step 16 counted anew
        "sgd": EXAMPLE.but(levels=rung_levels(min_flops=5e8, max_flops=1.3e9, per_decade=5)),
        "schedule_free": EXAMPLE.but(**OPTIMIZERS["schedule_free"]),
    },
    off={
        "no_threshold": EXAMPLE.but(
            settings={"initial_threshold": 0.0, "final_threshold": 0.0}, levels=LEVELS[:2]
        )
    },
    refused_depths=(0.0, 0.5),
    needed=("initial_threshold", "final_threshold"),
    needs_weights=True,
)
