"""Examples of PAC-Net."""

from dataclasses import replace

from tests.trainables.methods.method_examples import OPTIMIZERS, MethodExample, MethodExamples
from tests.trainables.recipes import LEVELS

EXAMPLE = MethodExample(
    method="pac_net",
    settings={"sparsity": 0.8, "penalty": 0.01, "allocate_share": 0.25},
    source_task=True,
)
EXAMPLES = MethodExamples(
    trained={name: EXAMPLE.but(**OPTIMIZERS[name]) for name in ("sgd", "adamw")},
    off={
        "dense": replace(
            EXAMPLE.but(settings={"sparsity": 0.0}, levels=LEVELS[:2]), source_task=False
        )
    },
    refused_depths=(0.0, 0.5),
    needed=("sparsity",),
    needs_weights=True,
)
