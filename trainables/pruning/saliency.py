"""Saliency: how the loss of each labelled image answers to each channel.

A gate z = 1 multiplies a channel where the layers behind it read it. The derivative of an image's
loss by it is the sum, over those layers and all places, of activation × gradient. Taylor and Fisher
criteria are two statistics of it.

The classifier was just made for the new task and its weights are random. The gradient is then that
of a random linear readout: its sign says nothing of the task, so the mean over images (Taylor) is
largely chance, while its size (Fisher) still tells how strongly the representation depends on a
channel on these images.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainables.backbones.modes import eval_mode
from trainables.errors import InfeasibleError
from trainables.pruning.channels.groups import ChannelGroup, Side

GateGradients = Callable[[Sequence[ChannelGroup]], Sequence[Tensor]]
"""groups -> for each of them ∂L/∂z [images, width]."""


def gate_gradients(
    model: nn.Module, groups: Sequence[ChannelGroup], batches: Iterable[tuple[Tensor, Tensor]]
) -> tuple[Tensor, ...]:
    """∂L/∂z of every image's cross-entropy L, for each group [images, width], float64 on the CPU.

    `batches` are pairs of images [n, channels, height, width], normalised and not augmented, and
    their labels [n], on the model's device. The model runs in eval mode, so that images do not see
    one another and dropout is off; modes come back, and gradients are cleared. The cost is that of
    as many training steps' forward and backward passes, with the gradients that are switched on.

    Raises `InfeasibleError` where a gradient is not finite, none reaches any channel, or there are
    no images.
    """
    found: list[list[Tensor]] = [[] for _ in groups]
    readers = {
        member.name: model.get_submodule(member.name)
        for group in groups
        for member in group.members
        if member.side is Side.IN
    }
    with torch.inference_mode(mode=False), torch.enable_grad(), eval_mode(model):
        for images, labels in batches:
            by_reader = _by_reader(model, readers, images, labels)
            for group, parts in zip(groups, found, strict=True):
                parts.append(_shared_gate(group, by_reader, images=len(images)))
    if not any(found):
        raise InfeasibleError("There is no labelled image to differentiate the loss of.")
    measured = tuple(torch.cat(parts) for parts in found)
    for group, gates in zip(groups, measured, strict=True):
        if not gates.isfinite().all():
            raise InfeasibleError(f"The gradient at {group.name} is not finite on these images.")
    if not any(gates.any() for gates in measured):
        raise InfeasibleError("The loss has no gradient at any channel that may be pruned.")
    return measured


def _by_reader(
    model: nn.Module, readers: dict[str, nn.Module], images: Tensor, labels: Tensor
) -> dict[str, Tensor]:
    """∂L/∂z [images, inputs] at the inputs of each layer that reads channels."""
    sums: dict[str, Tensor] = {}

    def gate(name: str) -> Callable[[nn.Module, tuple[Any, ...]], tuple[Any, ...]]:
        def enter(module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
            maps = inputs[0] if inputs[0].requires_grad else inputs[0].detach().requires_grad_()
            maps = maps.view_as(maps)  # its gradient is this reader's alone
            values = maps.detach()
            dim = -1 if isinstance(module, nn.Linear) else 1

            def note(gradient: Tensor) -> None:
                product = (values * gradient).movedim(dim, -1)
                summed = product.reshape(len(images), -1, product.shape[-1]).sum(dim=1)
                sums[name] = sums.get(name, 0) + summed.to("cpu", torch.float64)

            maps.register_hook(note)
            return (maps, *inputs[1:])

        return enter

    hooks = [layer.register_forward_pre_hook(gate(name)) for name, layer in readers.items()]
    try:
        F.cross_entropy(model(images).float(), labels, reduction="sum").backward()
    finally:
        for hook in hooks:
            hook.remove()
        model.zero_grad(set_to_none=True)
    return sums


def _shared_gate(group: ChannelGroup, by_reader: dict[str, Tensor], *, images: int) -> Tensor:
    """One gate for all layers that read a channel: their derivatives add up."""
    gate = torch.zeros(images, group.width, dtype=torch.float64)
    for member in group.members:
        if member.side is Side.IN and member.name in by_reader:
            inputs = by_reader[member.name][:, torch.tensor(member.indices)]
            gate.index_add_(1, torch.tensor(member.channels), inputs)
    return gate
