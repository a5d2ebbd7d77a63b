"""Examples of LoRA."""

from tests.trainables.methods.method_examples import (
    LATER,
    MethodExample,
    MethodExamples,
    with_every_optimizer,
)
from tests.trainables.recipes import LEVELS

EXAMPLE = MethodExample(
    method="lora",
    settings={"rank": 2, "alpha": 4.0, "norms": True},
    changes={"learning_rate": 0.1},
    levels=LEVELS[:3],
)
EXAMPLES = MethodExamples(
    trained={
        **with_every_optimizer(EXAMPLE, free_levels=LATER[1:]),
        "undisturbed": EXAMPLE,
        "without_norms": EXAMPLE.but(settings={"norms": False}),
    },
    off={"rank_0": EXAMPLE.but(settings={"rank": 0}, trainable_depth=0.5, levels=LEVELS[:2])},
    refused_depths=(0.0, 0.5),
    needed=("rank", "alpha", "norms"),
    needs_weights=True,
)
