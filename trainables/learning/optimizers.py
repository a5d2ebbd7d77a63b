"""Optimisers: one group of parameters for each layer, and their state in a checkpoint."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from schedulefree import AdamWScheduleFree
from torch import Tensor, nn

from search_spaces.recipe import Optimizer
from trainables.backbones.layers import layer_of_parameter

MOMENTUM = 0.9
BETAS = (0.9, 0.999)
"""AdamW's decay rates of the averages of gradient and squared gradient."""
STATE_COPIES = {Optimizer.SGD: 1, Optimizer.ADAMW: 2, Optimizer.SCHEDULE_FREE_ADAMW: 2}
"""Tensors of its own that an optimiser keeps for each weight."""


def build_optimizer(
    kind: Optimizer,
    model: nn.Module,
    *,
    learning_rate: float,
    weight_decay: float,
    layer_decay: float,
) -> torch.optim.Optimizer:
    """The optimiser over the trainable parameters, ready to take steps.

    A layer that lies d layers below the head learns at `learning_rate * layer_decay ** d`, kept in
    the group's `peak_lr`. Vectors (norms, biases, gains of a channel) are not decayed.
    """
    groups = _groups(
        model, learning_rate=learning_rate, weight_decay=weight_decay, layer_decay=layer_decay
    )
    # `fused` is one pass over memory, where small batches spend much of their time
    match kind:
        case Optimizer.SGD:
            return torch.optim.SGD(
                groups, lr=learning_rate, momentum=MOMENTUM, nesterov=True, fused=True
            )
        case Optimizer.ADAMW:
            return torch.optim.AdamW(groups, lr=learning_rate, betas=BETAS, fused=True)
        case Optimizer.SCHEDULE_FREE_ADAMW:
            # without its own warm-up: `schedules.set_learning_rate` warms every optimiser up
            free = AdamWScheduleFree(groups, lr=learning_rate, betas=BETAS)
            free.train()
            optimizer: torch.optim.Optimizer = free
            return optimizer


def optimizer_tensors(optimizer: torch.optim.Optimizer, model: nn.Module) -> dict[str, Tensor]:
    """The optimiser's state of every parameter, as `KIND:PARAMETER`, such as `exp_avg:fc.bias`."""
    return {
        f"{kind}:{name}": value
        for name, parameter in model.named_parameters()
        for kind, value in optimizer.state.get(parameter, {}).items()
    }


def optimizer_numbers(optimizer: torch.optim.Optimizer) -> list[dict[str, float]]:
    """The numbers that each group of parameters has come to, as JSON keeps them."""
    return [
        {key: value for key, value in group.items() if isinstance(value, int | float)}
        for group in optimizer.param_groups
    ]


def restore_optimizer(
    optimizer: torch.optim.Optimizer,
    model: nn.Module,
    *,
    tensors: Mapping[str, Tensor],
    numbers: Sequence[Mapping[str, float]],
) -> None:
    """Puts back what `optimizer_tensors` and `optimizer_numbers` gave, laid out as the model is."""
    parameters = dict(model.named_parameters())
    for key, saved in tensors.items():
        kind, _, name = key.partition(":")
        parameter = parameters[name]
        value = saved.to(parameter.device)
        if value.shape == parameter.shape:
            value = torch.empty_like(parameter).copy_(value)
        optimizer.state[parameter][kind] = value
    for group, values in zip(optimizer.param_groups, numbers, strict=True):
        group.update(values)


def _groups(
    model: nn.Module, *, learning_rate: float, weight_decay: float, layer_decay: float
) -> list[dict[str, Any]]:
    layers = layer_of_parameter(model)
    head = max(layers.values())
    groups: dict[tuple[int, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            # by size, because a gain may have its weight's dimensions: [channels, 1, 1, 1]
            decayed = parameter.numel() > max(parameter.shape, default=1)
            groups.setdefault((layers[name], decayed), []).append(parameter)
    return [
        {
            "params": parameters,
            "peak_lr": learning_rate * layer_decay ** (head - layer),
            "weight_decay": weight_decay if decayed else 0.0,
        }
        for (layer, decayed), parameters in groups.items()
    ]
