"""The example of the linear probe."""

from tests.trainables.methods.method_examples import MethodExample, MethodExamples
from trainables.rungs import rung_levels

EXAMPLE = MethodExample(
    method="linear_probe",
    changes={"trainable_depth": 0.0},
    levels=rung_levels(min_flops=1.6e8, max_flops=1.77e8, per_decade=120),
)
"""Its steps are so cheap that it ends long before the rungs of the others."""
EXAMPLES = MethodExamples(trained={"sgd": EXAMPLE}, refused_depths=(0.5, 1.0))
