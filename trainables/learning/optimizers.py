"""What is trained, and by which optimiser: trainable depth, parameter groups, average."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from copy import deepcopy
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
AVERAGE_ORDER = 8
"""Order of the polynomial-decay average: about the last 1/(order + 1) of the steps count."""


def freeze_below(model: nn.Module, *, trainable_depth: float) -> None:
    """Leaves the head and the last `trainable_depth` (0-1) of the other layers trainable."""
    layers = layer_of_parameter(model)
    head = max(layers.values())
    first_trained = head - round(trainable_depth * head)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(layers[name] >= first_trained)


def train_mode(model: nn.Module) -> None:
    """Training mode for what is trained; frozen layers keep their statistics and drop nothing."""
    model.train()
    for module in model.modules():
        if _is_frozen(module):
            module.eval()


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


class RunningAverage:
    """A copy of a model that follows it: what is measured and exported.

    Polynomial-decay averaging (Shamir & Zhang 2013) of weights and statistics: with order g,
    a_t = a_{t-1} + (g + 1) / (t + g) * (w_t - a_{t-1}). It needs no horizon, so that the early
    rungs of a long schedule are as honest as the last.
    """

    def __init__(self, model: nn.Module) -> None:
        """`model` must have been frozen and moved already: what is frozen is not followed."""
        self.model = deepcopy(model).requires_grad_(requires_grad=False).eval()
        """The average, in eval mode."""
        pairs: list[tuple[Tensor, Tensor]] = [
            (mine, theirs.detach())
            for mine, theirs in zip(self.model.parameters(), model.parameters(), strict=True)
            if theirs.requires_grad
        ]
        for mine, theirs in zip(self.model.modules(), model.modules(), strict=True):
            if not _is_frozen(theirs):
                pairs += zip(
                    mine.buffers(recurse=False), theirs.buffers(recurse=False), strict=True
                )
        self._averaged = [pair for pair in pairs if pair[0].is_floating_point()]
        self._copied = [pair for pair in pairs if not pair[0].is_floating_point()]
        self.settling_images = 0
        """How many images `settle` passes forward."""

    def settle(
        self, calibration: Iterable[Tensor], *, hold: Callable[[nn.Module], None] | None = None
    ) -> None:
        """Nothing: the average is ready to be measured at any time."""

    @torch.no_grad()
    def update(self, *, step: int) -> None:
        """Follows the model after its step number `step`, from 1."""
        share = (AVERAGE_ORDER + 1) / (step + AVERAGE_ORDER)
        mine, theirs = zip(*self._averaged, strict=True)
        torch._foreach_lerp_(mine, theirs, share)
        for own, new in self._copied:
            own.copy_(new)


def _is_frozen(module: nn.Module) -> bool:
    """Whether the module has weights and none of them is trained."""
    parameters = list(module.parameters())
    return bool(parameters) and not any(p.requires_grad for p in parameters)


def _groups(
    model: nn.Module, *, learning_rate: float, weight_decay: float, layer_decay: float
) -> list[dict[str, Any]]:
    layers = layer_of_parameter(model)
    head = max(layers.values())
    groups: dict[tuple[int, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            # by size, for a gain may have its weight's dimensions: [channels, 1, 1, 1]
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
