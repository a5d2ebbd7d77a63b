"""The channel graph of small networks whose groups are known by construction."""

import copy

import pytest
import timm
import torch
from torch import Tensor, nn

from tests.trainables.backbones.cifar_resnet import CifarResNet
from tests.trainables.pruning.nets import Chain, Squeeze, TwoBranches
from trainables.errors import InfeasibleError
from trainables.pruning.channels.engine import find_groups
from trainables.pruning.channels.groups import ChannelGroup, Side


def groups_of(model: nn.Module, head: str, resolution: int = 16) -> dict[str, ChannelGroup]:
    graph = find_groups(model, resolution=resolution, head=[head])
    return {group.name: group for group in graph.groups}


def inner_of(groups: dict[str, ChannelGroup]) -> set[str]:
    return {name for name, group in groups.items() if group.is_inner and not group.is_output}


def sides(group: ChannelGroup) -> set[tuple[str, Side]]:
    return {(member.name, member.side) for member in group.members}


def test_a_chain_has_one_group_a_layer() -> None:
    groups = groups_of(Chain(nn.BatchNorm2d(8)), "head")
    assert list(groups) == ["first", "second", "head"]
    assert sides(groups["first"]) == {
        ("first", Side.OUT),
        ("between", Side.BOTH),
        ("second", Side.IN),
    }
    assert groups["second"].is_representation
    assert groups["head"].is_output
    assert inner_of(groups) == {"first"}


def test_a_frozen_model_has_the_same_groups_and_is_left_alone() -> None:
    model = Chain(nn.BatchNorm2d(8)).train()
    expected = groups_of(model, "head")
    model.requires_grad_(requires_grad=False)
    before = copy.deepcopy(model.state_dict())
    with torch.inference_mode():
        assert groups_of(model, "head") == expected
    assert all(module.training for module in model.modules())
    assert not any(p.requires_grad for p in model.parameters())
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())


def test_depthwise_layers_pass_channels_on_and_grouped_ones_ask_for_equal_blocks() -> None:
    depthwise = groups_of(Chain(nn.Conv2d(8, 8, 3, padding=1, groups=8)), "head")["first"]
    assert ("between", Side.BOTH) in sides(depthwise)
    assert depthwise.producers == ("first",)
    assert depthwise.consumers == ("second",)
    grouped = groups_of(Chain(nn.Identity(), groups=4), "head")
    assert {m.name: m.blocks for m in grouped["first"].members} == {"first": 1, "second": 4}
    assert {m.name: m.blocks for m in grouped["second"].members} == {"second": 4, "head": 1}


def test_a_gate_neither_makes_nor_reads_the_channels_it_scales() -> None:
    groups = groups_of(Chain(Squeeze(8)), "head")
    first = groups["first"]
    assert first.producers == ("first",)
    assert first.consumers == ("second",)
    assert {("between.reduce", Side.IN), ("between.expand", Side.OUT)} <= sides(first)
    assert inner_of(groups) == {"first", "between.reduce"}


def test_a_product_of_two_branches_has_two_producers() -> None:
    (both,) = [g for g in groups_of(TwoBranches(), "head").values() if len(g.producers) == 2]
    assert set(both.producers) == {"left", "right"}
    assert both.is_inner  # there are no blocks, and the channels are not the representation


def test_inner_channels_of_resnets_are_those_within_blocks() -> None:
    for name, convolutions in (("resnet18", 1), ("resnet50", 2), ("seresnet18", 1)):
        groups = groups_of(timm.create_model(name), "fc", resolution=32)
        inner = {name for name in inner_of(groups) if ".se." not in name}
        blocks = sum((2, 2, 2, 2) if convolutions == 1 else (3, 4, 6, 3))
        assert len(inner) == blocks * convolutions
        assert all(n.endswith(("conv1", "conv2")) and n.startswith("layer") for n in inner)


def test_inner_channels_of_a_users_own_network() -> None:
    groups = groups_of(CifarResNet(blocks=2), "linear")
    expected = {f"layer{stage}.{block}.conv1" for stage in (1, 2, 3) for block in (0, 1)}
    assert inner_of(groups) == expected


def test_a_concatenation_joins() -> None:
    groups = groups_of(timm.create_model("densenet121", block_config=(2, 2)), "classifier", 32)
    inner = inner_of(groups)
    # (in the small network the second transition's norm leads to the classifier)
    assert inner == {n for n in groups if n.endswith("conv1")}
    assert len(inner) == 4


class Embedded(nn.Module):
    """Multi-head attention over the places of a map."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 4, stride=4)
        self.mixer = nn.MultiheadAttention(8, 2, batch_first=True)
        self.head = nn.Linear(8, 5)

    def forward(self, images: Tensor) -> Tensor:
        tokens = self.stem(images).flatten(2).transpose(1, 2)
        logits: Tensor = self.head(self.mixer(tokens, tokens, tokens)[0].mean(1))
        return logits


def test_a_layer_that_cannot_be_cut_is_named() -> None:
    faults = {group.name: group.fault for group in groups_of(Embedded(), "head").values()}
    assert "mixer (MultiheadAttention) multiplies matrices" in str(faults["stem"])
    transposed = groups_of(Chain(nn.ConvTranspose2d(8, 8, 1, groups=2)), "head")
    assert "between is a grouped transposed" in str(transposed["first"].fault)


class ReadsValues(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(3, 5)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.head(images.mean((2, 3)) / images.max().item())
        return logits


def test_a_model_that_cannot_be_traced_is_infeasible() -> None:
    with pytest.raises(InfeasibleError, match=r"ReadsValues at 16 pixels cannot be traced"):
        groups_of(ReadsValues(), "head")


def test_the_graph_is_found_once_for_equal_structures() -> None:
    def graph(model: nn.Module, resolution: int = 16) -> object:
        return find_groups(model, resolution=resolution, head=["head"])

    first = graph(Chain(nn.BatchNorm2d(8)))
    assert graph(Chain(nn.BatchNorm2d(8))) is first
    assert graph(Chain(nn.BatchNorm2d(8)), resolution=32) is not first
    assert graph(Chain(nn.GroupNorm(2, 8))) is not graph(Chain(nn.GroupNorm(4, 8)))
