"""The example of full finetuning."""

from tests.trainables.methods.method_examples import MethodExample, MethodExamples
from tests.trainables.recipes import LEVELS

EXAMPLE = MethodExample(method="full", levels=LEVELS[:3])
EXAMPLES = MethodExamples(trained={"sgd": EXAMPLE}, refused_depths=(0.0, 0.5))
