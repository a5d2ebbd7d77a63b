"""Which channel groups are built alike."""

from collections.abc import Hashable

from torch import nn

from tests.trainables.backbones.cifar_resnet import CifarResNet
from tests.trainables.pruning.nets import Chain
from trainables.pruning.channels.engine import find_groups
from trainables.pruning.isomorphism import structural_kind


def kinds(model: nn.Module, *, head: str = "head") -> dict[str, Hashable]:
    graph = find_groups(model, resolution=32, head=[head])
    return {group.name: structural_kind(model, group) for group in graph.groups}


def test_blocks_of_one_sort_are_alike_whatever_their_width_and_stride() -> None:
    found = kinds(CifarResNet(blocks=2), head="linear")
    blocks = {found[f"layer{stage}.{block}.conv1"] for stage in (1, 2, 3) for block in (0, 1)}
    assert len(blocks) == 1


def test_norms_kernels_and_depthwise_layers_make_a_kind() -> None:
    between = (
        nn.Identity(),
        nn.BatchNorm2d(8),
        nn.GroupNorm(2, 8),
        nn.Conv2d(8, 8, 3, groups=8),
        nn.Conv2d(8, 8, 5, groups=8),
    )
    found = [kinds(Chain(layer))["first"] for layer in between]
    assert len(set(found)) == len(between)
    assert kinds(Chain(nn.BatchNorm2d(16), width=16))["first"] == found[1]
