"""Gradients of the loss by gates on channels."""

import copy

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.trainables.pruning.nets import Chain, Squeeze, TwoBranches
from trainables.errors import InfeasibleError
from trainables.pruning.channels.engine import find_groups
from trainables.pruning.channels.groups import ChannelGroup
from trainables.pruning.saliency import gate_gradients


def groups_of(model: nn.Module, *names: str) -> list[ChannelGroup]:
    graph = find_groups(model, resolution=16, head=["head"])
    return [g for name in names for g in graph.groups if name in g.producers]


def batch(images: int = 6) -> tuple[Tensor, Tensor]:
    noise = torch.randn(images, 3, 8, 8, generator=torch.manual_seed(0), dtype=torch.float64)
    return noise, torch.arange(images) % 5


class Gated(nn.Module):
    """A chain whose channels are multiplied by a gate where the second layer reads them."""

    def __init__(self, chain: Chain) -> None:
        super().__init__()
        self.chain = chain

    def forward(self, images: Tensor, gate: Tensor) -> Tensor:
        maps = self.chain.between(F.relu(self.chain.first(images))) * gate[:, :, None, None]
        maps = F.relu(self.chain.second(maps))
        logits: Tensor = self.chain.head(maps.mean((2, 3)))
        return logits


def test_they_are_the_derivatives_by_a_gate_image_by_image() -> None:
    torch.manual_seed(0)
    model = Chain(nn.BatchNorm2d(8)).double().eval()
    images, labels = batch()
    gate = torch.ones(6, 8, dtype=torch.float64, requires_grad=True)
    F.cross_entropy(Gated(model)(images, gate), labels, reduction="sum").backward()
    batches = zip(images.split(4), labels.split(4), strict=True)
    (found,) = gate_gradients(model, groups_of(model, "first"), batches)
    assert found.shape == (6, 8)
    assert gate.grad is not None
    assert torch.allclose(found, gate.grad)


def test_a_channel_that_several_layers_read_has_one_gate() -> None:
    torch.manual_seed(0)
    model = Chain(Squeeze(8)).double()
    group = groups_of(model, "first")
    readers = {m.name for m in group[0].members if m.side == "in"}
    assert readers == {"between.reduce", "second"}
    (found,) = gate_gradients(model, group, [batch()])
    (alone,) = gate_gradients(copy.deepcopy(model), group, [batch()])
    assert torch.equal(found, alone)
    images, labels = batch()
    first = F.relu(model.first(images)).detach()
    gate = torch.ones(6, 8, 1, 1, dtype=torch.float64, requires_grad=True)
    pooled = (first * gate).mean((2, 3), keepdim=True)
    squeeze = model.between.expand(F.relu(model.between.reduce(pooled)))
    maps = F.relu(model.second(first * torch.sigmoid(squeeze) * gate))
    F.cross_entropy(model.head(maps.mean((2, 3))), labels, reduction="sum").backward()
    assert gate.grad is not None
    assert torch.allclose(found, gate.grad.flatten(1))


def test_frozen_networks_have_the_same_gradients() -> None:
    torch.manual_seed(0)
    free = TwoBranches().double()
    frozen = copy.deepcopy(free).requires_grad_(requires_grad=False)
    found = gate_gradients(free, groups_of(free, "left", "last"), [batch()])
    again = gate_gradients(frozen, groups_of(free, "left", "last"), [batch()])
    assert all(torch.equal(one, other) for one, other in zip(found, again, strict=True))


def test_the_model_is_as_it_was() -> None:
    model = timm.create_model("test_resnet", num_classes=5).train()
    model.layer1.eval()
    before = copy.deepcopy(model.state_dict())
    graph = find_groups(model, resolution=32, head=["fc"])
    images = torch.randn(4, 3, 32, 32)
    gate_gradients(model, [g for g in graph.groups if g.is_inner], [(images, torch.arange(4))])
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert (model.training, model.layer1.training) == (True, False)
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(not module._forward_pre_hooks for module in model.modules())


def test_no_images_no_gradient_and_broken_values_are_refused() -> None:
    model = Chain(nn.Identity()).double()
    groups = groups_of(model, "first")
    with pytest.raises(InfeasibleError, match="no labelled image"):
        gate_gradients(model, groups, [])
    dead = copy.deepcopy(model)
    with torch.no_grad():
        dead.head.weight.zero_()
    with pytest.raises(InfeasibleError, match="no gradient at any channel"):
        gate_gradients(dead, groups, [batch()])
    with torch.no_grad():
        model.second.weight[0] = torch.nan
    with pytest.raises(InfeasibleError, match="The gradient at first is not finite"):
        gate_gradients(model, groups, [batch()])
