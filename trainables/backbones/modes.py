"""Modes: a model in eval mode for a while, and back."""

from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum

from torch import nn

from trainables.backbones.layers import computes_its_weight, is_norm


class Mode(StrEnum):
    """The two modes of a model."""

    EVAL = "eval"
    """The mode in which a model is measured and used."""
    TRAIN = "train"
    """The mode in which it takes training steps."""


def in_mode(model: nn.Module, mode: Mode) -> nn.Module:
    """`model` itself, set to `mode`, but for what does the same to channels in either.

    Dropout layers and norms stay in eval mode, because a norm in train mode wants more than one
    value, and so do layers that compute their weights, which may change with each pass.
    """
    alike = (
        module
        for layer in model.modules()
        if isinstance(layer, nn.modules.dropout._DropoutNd)
        or is_norm(layer)
        or computes_its_weight(layer)
        for module in layer.modules()
    )
    model.train(mode is Mode.TRAIN)
    for module in alike:
        module.training = False
    return model


@contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """`model` in eval mode inside the block; afterwards each module has the mode it had."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode
