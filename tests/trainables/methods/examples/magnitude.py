"""Examples of magnitude pruning."""

from tests.trainables.methods.method_examples import (
    LATER,
    MethodExample,
    MethodExamples,
    with_every_optimizer,
)
from tests.trainables.recipes import LEVELS

ONE_SHOT = MethodExample(method="magnitude", settings={"sparsity": 0.9})
GRADUAL = ONE_SHOT.but(
    settings={"sparsification": "gradual", "ramp": 0.75, "scope": "global"}, levels=LATER
)
REPAIRED = ONE_SHOT.but(settings={"batch_norm_repair": True})
HEAD_LEVELS = (4.75e8, 4.8e8, 5.2e8)
EXAMPLES = MethodExamples(
    trained={
        **{f"gradual_{name}": one for name, one in with_every_optimizer(GRADUAL).items()},
        **{
            f"one_shot_{name}": one
            for name, one in with_every_optimizer(
                ONE_SHOT.but(levels=LEVELS[:3]), free_levels=LATER[1:]
            ).items()
        },
        "head": REPAIRED.but(trainable_depth=0.0, levels=HEAD_LEVELS),
        "half": REPAIRED.but(trainable_depth=0.5),
    },
    off={
        "one_shot": ONE_SHOT.but(settings={"sparsity": 0.0}, levels=LEVELS[:2]),
        "gradual": GRADUAL.but(settings={"sparsity": 0.0}, levels=LEVELS[:2]),
    },
    refused_depths=(0.0, 0.5),  # of gradual pruning, the first of them
    needed=("sparsity",),
    needs_weights=True,
)
