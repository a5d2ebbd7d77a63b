"""Freezing: which layers of a model are trained, and the mode that each is in meanwhile."""

from torch import nn

from trainables.backbones.layers import (
    classifier_name,
    is_within,
    layer_of_parameter,
    norm_parameters,
)


def freeze_below(model: nn.Module, *, trainable_depth: float) -> None:
    """Leaves the head and the last `trainable_depth` (0-1) of the other layers trainable."""
    layers = layer_of_parameter(model)
    head = max(layers.values())
    first_trained = head - round(trainable_depth * head)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(layers[name] >= first_trained)


def train_norms_and_head(model: nn.Module, *, norms: bool = True) -> None:
    """Leaves the head and, if `norms`, the gains and biases of all norms trainable, nothing else.

    Parametrisations that are added afterwards bring trainable parameters of their own.
    """
    trained = norm_parameters(model) if norms else frozenset()
    head = classifier_name(model)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in trained or is_within(name, head))


def train_mode(model: nn.Module) -> None:
    """Training mode for what is trained; frozen layers keep their statistics and drop nothing."""
    model.train()
    for module in model.modules():
        if is_frozen(module):
            module.eval()


def is_frozen(module: nn.Module) -> bool:
    """Whether the module has weights and none of them is trained."""
    parameters = list(module.parameters())
    return bool(parameters) and not any(p.requires_grad for p in parameters)
