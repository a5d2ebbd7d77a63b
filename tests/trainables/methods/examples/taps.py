"""Examples of TAPS."""

from tests.trainables.methods.budgets import LEVELS, disturbed
from tests.trainables.methods.method_examples import OPTIMIZERS, MethodExample, MethodExamples

EXAMPLE = MethodExample(method="taps", settings={"budget": 0.3, "penalty": 1.0}, levels=LEVELS)
EXAMPLES = MethodExamples(
    trained={optimizer: disturbed(EXAMPLE, optimizer) for optimizer in OPTIMIZERS},
    off={"everything": EXAMPLE.but(settings={"budget": 1.0}, trainable_depth=0.5)},
    refused_depths=(0.0, 0.5),
    needed=("budget", "penalty"),
    needs_weights=True,
)
