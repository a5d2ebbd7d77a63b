"""Examples of FISH masks."""

from tests.trainables.methods.method_examples import (
    LATER,
    OPTIMIZERS,
    MethodExample,
    MethodExamples,
    with_every_optimizer,
)
from tests.trainables.recipes import LEVELS

EXAMPLE = MethodExample(
    method="fish_mask",
    settings={"share": 0.005, "samples": 8},
    changes={"learning_rate": 0.02},
    levels=LEVELS[:3],
)
EXAMPLES = MethodExamples(
    trained={
        **with_every_optimizer(EXAMPLE, free_levels=LATER[1:]),
        "large_share": EXAMPLE.but(
            settings={"share": 0.3}, levels=LATER[1:], **OPTIMIZERS["schedule_free"]
        ),
    },
    off={"everything": EXAMPLE.but(settings={"share": 1.0}, levels=LEVELS[:2])},
    refused_depths=(0.0, 0.5),
    needed=("share",),
    needs_weights=True,
    smaller={"samples": 8},
)
