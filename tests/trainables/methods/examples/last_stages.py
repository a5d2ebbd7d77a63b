"""The example of training the last stages."""

from tests.trainables.methods.method_examples import MethodExample, MethodExamples
from tests.trainables.recipes import LEVELS

EXAMPLE = MethodExample(method="last_stages", changes={"trainable_depth": 0.5}, levels=LEVELS[:3])
EXAMPLES = MethodExamples(trained={"sgd": EXAMPLE}, refused_depths=(0.0, 1.0))
