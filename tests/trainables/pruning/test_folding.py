"""Folding: filters merged instead of dropped."""

import copy

import pytest
import timm
import torch
from torch import nn

from tests.trainables.pruning.nets import Chain
from tests.trainables.pruning.plans import plan_of
from trainables.pruning import prune
from trainables.pruning.channels.engine import find_groups
from trainables.pruning.channels.groups import ChannelGroup
from trainables.pruning.folding import folded
from trainables.pruning.widths import block_channels


def fold(model: nn.Module, *, ratio: float = 0.5, width_rule: str = "inner") -> None:
    plan = plan_of(ratio=ratio, criterion="folding", width_rule=width_rule)
    prune(model, plan, head="head", resolution=16, seed=0)


def group_of(model: nn.Module, name: str) -> ChannelGroup:
    graph = find_groups(model, resolution=16, head=["head"])
    (found,) = [group for group in graph.groups if name in group.producers]
    return found


def twins(model: Chain) -> Chain:
    """Channels 0-3 of the first layer again as 4-7, with readers that differ."""
    torch.manual_seed(0)
    with torch.no_grad():
        for tensor in [*model.first.parameters(), *model.between.parameters()]:
            tensor.normal_()
            tensor[4:] = tensor[:4]
        if isinstance(model.between, nn.BatchNorm2d):
            for name in ("running_mean", "running_var"):
                statistic = model.between.get_buffer(name).uniform_(0.5, 2)
                statistic[4:] = statistic[:4]
    return model.double().eval()


@pytest.mark.parametrize(
    "between",
    [nn.Identity(), nn.BatchNorm2d(8), nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.PReLU(8)],
    ids=lambda value: type(value).__name__,
)
def test_exact_duplicates_fold_without_loss(between: nn.Module) -> None:
    model = twins(Chain(copy.deepcopy(between)))
    images = torch.randn(4, 3, 16, 16, dtype=torch.float64)
    expected = model(images)
    fold(model)
    assert model.first.out_channels == 4
    assert torch.allclose(model(images), expected, rtol=1e-9)


def test_dropping_duplicates_loses_what_folding_keeps() -> None:
    model = twins(Chain(nn.BatchNorm2d(8)))
    images = torch.randn(4, 3, 16, 16, dtype=torch.float64)
    expected = model(images)
    prune(model, plan_of(criterion="l2"), head="head", resolution=16, seed=0)
    assert not torch.allclose(model(images), expected, rtol=1e-2)


def test_makers_get_the_mean_and_readers_the_sum_of_a_cluster() -> None:
    model = Chain(nn.BatchNorm2d(8))
    with torch.no_grad():
        model.first.weight.copy_(torch.arange(8.0).floor_divide(2).mul(100)[:, None, None, None])
        model.first.weight[1::2] += 1  # four pairs that lie close together
    first, norm = model.first.weight.clone(), model.between.running_var.copy_(torch.rand(8)).clone()
    reader = model.second.weight.clone()
    fold(model)
    pairs = torch.arange(8).view(4, 2)
    assert torch.allclose(model.first.weight, first[pairs].mean(1))
    assert torch.allclose(model.between.running_var, norm[pairs].mean(1))
    assert torch.allclose(model.second.weight, reader[:, pairs].sum(2))


def test_a_cluster_stays_within_a_block_of_a_grouped_convolution() -> None:
    model = Chain(nn.Identity(), groups=2)
    with torch.no_grad():
        model.first.weight.zero_()
        model.first.weight[::2] = 1  # alike across the blocks 0-3 and 4-7
    group = group_of(model, "first")
    reduction = folded(model, group, blocks=block_channels(group), kept=4)
    assert reduction.stands.tolist() == [0, 1, 0, 1, 4, 5, 4, 5]
    fold(model)
    assert model.second.weight.shape == (12, 2, 3, 3)


def test_fewer_kinds_of_filters_than_clusters_still_fill_every_cluster() -> None:
    model = Chain(nn.Identity())
    with torch.no_grad():
        for parameter in model.first.parameters():
            parameter.fill_(1)
    images = torch.randn(2, 3, 16, 16)
    expected = model(images)
    fold(model)
    assert model.first.out_channels == 4
    assert torch.allclose(model(images), expected, atol=1e-5)


def test_folding_is_the_same_for_every_seed() -> None:
    torch.manual_seed(0)
    model = timm.create_model("test_resnet", num_classes=5)
    folds = []
    for seed in (0, 1):
        one = copy.deepcopy(model)
        plan = plan_of(criterion="folding", width_rule="all")
        prune(one, plan, head="fc", resolution=32, seed=seed)
        folds.append(one.state_dict())
    assert all(torch.equal(value, folds[1][name]) for name, value in folds[0].items())


@pytest.mark.parametrize("name", ["test_resnet", "test_efficientnet"])
@pytest.mark.parametrize("width_rule", ["inner", "all"])
def test_whole_networks_fold(name: str, width_rule: str) -> None:
    model = timm.create_model(name, num_classes=5)
    plan = plan_of(criterion="folding", width_rule=width_rule)
    dense = sum(p.numel() for p in model.parameters())
    prune(model, plan, head=model.get_classifier(), resolution=32, seed=0)
    assert sum(p.numel() for p in model.parameters()) < dense
    assert model.eval()(torch.randn(2, 3, 32, 32)).isfinite().all()
