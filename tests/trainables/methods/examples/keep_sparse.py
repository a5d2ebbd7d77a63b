"""Examples of keeping a backbone's zeros."""

from dataclasses import replace

from tests.trainables.methods.method_examples import (
    LATER,
    MethodExample,
    MethodExamples,
    pretrained,
    with_every_optimizer,
)
from tests.trainables.recipes import LEVELS, SMALL
from trainables.backbones import build as backbones
from trainables.backbones.layers import backbone_weights
from trainables.backbones.state import Weights
from trainables.mechanisms.sparsity import SparsityScope, keep_largest

SPARSITY = 0.8
HEAD_LEVELS = (2.4e8, 2.45e8, 2.8e8)


def sparse_weights() -> Weights:
    """The pretrained weights, of which `SPARSITY` are zero."""
    weights = dict(pretrained())
    names = backbone_weights(backbones.build(SMALL, num_classes=7))
    scores = {name: weights[name].abs() for name in names}
    masks = keep_largest(scores, sparsity=SPARSITY, scope=SparsityScope.GLOBAL)
    return weights | {name: weights[name] * mask for name, mask in masks.items()}


EXAMPLE = MethodExample(method="keep_sparse", weights=sparse_weights, levels=LEVELS[:3])
EXAMPLES = MethodExamples(
    trained={
        **with_every_optimizer(EXAMPLE, free_levels=LATER[1:]),
        "head": EXAMPLE.but(trainable_depth=0.0, levels=HEAD_LEVELS),
        "half": EXAMPLE.but(trainable_depth=0.5),
    },
    off={"dense_backbone": replace(EXAMPLE, weights=pretrained, levels=LEVELS[:2])},
    needs_weights=True,
)
