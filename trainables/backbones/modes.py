"""Modes: a model in eval mode for a while, and back."""

from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum

from torch import nn

from trainables.backbones.layers import is_norm


class Mode(StrEnum):
    """The two modes of a model."""

    EVAL = "eval"
    """As it is measured and used."""
    TRAIN = "train"
    """As it takes training steps."""


def in_mode(model: nn.Module, mode: Mode) -> nn.Module:
    """`model` itself, set to `mode`, but for dropout layers and norms, which stay in eval mode.

    They do the same to channels in either, and a norm in train mode wants more than one value.
    """
    for module in model.modules():
        alike = isinstance(module, nn.modules.dropout._DropoutNd) or is_norm(module)
        module.training = mode is Mode.TRAIN and not alike
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
