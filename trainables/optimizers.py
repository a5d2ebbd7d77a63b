"""What is trained, and how fast: trainable depth, parameter groups, schedule, average."""

import math
from copy import deepcopy

import torch
from torch import Tensor, nn

from trainables.layers import layer_of_parameter

WARMUP_SHARE = 0.1
"""Share of the steps over which the learning rate rises linearly to its peak."""
MOMENTUM = 0.9
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


def sgd(
    model: nn.Module, *, learning_rate: float, weight_decay: float, layer_decay: float
) -> torch.optim.SGD:
    """SGD with Nesterov momentum over the trainable parameters.

    A layer that lies d layers below the head learns at `learning_rate * layer_decay ** d`, kept in
    the group's `peak_lr`; norms and biases (one-dimensional parameters) are not decayed.
    """
    layers = layer_of_parameter(model)
    head = max(layers.values())
    groups: dict[tuple[int, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            groups.setdefault((layers[name], parameter.ndim > 1), []).append(parameter)
    return torch.optim.SGD(
        [
            {
                "params": parameters,
                "peak_lr": learning_rate * layer_decay ** (head - layer),
                "weight_decay": weight_decay if decayed else 0.0,
            }
            for (layer, decayed), parameters in groups.items()
        ],
        lr=learning_rate,
        momentum=MOMENTUM,
        nesterov=True,
        fused=True,  # one pass over memory, where small batches spend much of their time
    )


def set_learning_rate(optimizer: torch.optim.Optimizer, *, step: int, total_steps: int) -> None:
    """Linear warm-up, then cosine to zero at `total_steps`; `step` counts from 0."""
    warmup = max(1, round(WARMUP_SHARE * total_steps))
    if step < warmup:
        factor = (step + 1) / warmup
    else:
        progress = (step - warmup) / max(1, total_steps - warmup)
        factor = 0.5 * (1 + math.cos(math.pi * progress))
    for group in optimizer.param_groups:
        group["lr"] = group["peak_lr"] * factor


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
