"""Pruning whole networks: costs, faithfulness, refusals."""

import copy
import functools
import json
from typing import Any

import pytest
import timm
import torch
from timm import layers
from torch import nn

from tests.trainables.backbones.cifar_resnet import CifarResNet
from tests.trainables.pruning.nets import Chain, Squeeze
from tests.trainables.pruning.plans import plan_of
from trainables.backbones.skeleton import meta_copy
from trainables.costs.flops import count_flops
from trainables.errors import InfeasibleError, InputError
from trainables.pruning import PrunedStructure, PruningPlan, WidthRule, prune, rebuild, surgery
from trainables.pruning.channels.engine import find_groups
from trainables.pruning.channels.groups import ChannelGraph
from trainables.pruning.pruner import planned_structure


@functools.cache
def _dense(name: str) -> Any:
    return timm.create_model(name, num_classes=1000)


@functools.cache
def graph_of(name: str) -> ChannelGraph:
    model = _dense(name)
    head = next(n for n, m in model.named_modules() if m is model.get_classifier())
    return find_groups(model, resolution=32, head=[head])


def dense(name: str) -> Any:
    """A timm model of 1,000 classes."""
    return copy.deepcopy(_dense(name))


def classifier_of(model: Any) -> nn.Module:
    if isinstance(model, CifarResNet):
        return model.linear
    classifier: nn.Module = model.head if isinstance(model, Chain) else model.get_classifier()
    return classifier


def pruned(model: nn.Module, **choices: Any) -> PrunedStructure:
    plan = plan_of(**{"width_rule": "all"} | choices)
    return prune(model, plan, head=classifier_of(model), resolution=32, seed=0)


def bumpy(model: Any) -> Any:
    """Weights and statistics that are nowhere zero or one, so that outputs show every fault."""
    torch.manual_seed(0)
    for name, tensor in model.state_dict().items():
        if tensor.dim() == 1:
            tensor.uniform_(0.5, 1.5)
        elif "weight" in name:
            tensor.normal_(std=(2 / tensor[0].numel()) ** 0.5)
    return model


# METHODS.md §1: forward cost left at 224 pixels, by the project's own arithmetic
SHARES = {
    "resnet50": [(0.867, 0.808), (0.695, 0.568), (0.446, 0.257), (0.253, 0.068), (0.163, 0.012)],
    "resnet34": [(0.901, 0.807), (0.759, 0.569), (0.519, 0.258), (0.278, 0.069), (0.130, 0.012)],
    "resnet18": [(0.904, 0.809), (0.769, 0.575), (0.538, 0.266), (0.307, 0.075), (0.165, 0.015)],
}


def planned(name: str, **choices: Any) -> Any:
    """The pruned network without values: real scores and cuts, no proof."""
    model, skeleton = _dense(name), meta_copy(_dense(name))
    head = next(n for n, m in model.named_modules() if m is model.get_classifier())
    plan = plan_of(**{"width_rule": "all"} | choices)
    structure = planned_structure(model, graph_of(name), plan, head=[head], seed=0)
    surgery.apply(skeleton, structure.cuts, structure.resizes)
    return skeleton


def share_left(name: str, **choices: Any) -> float:
    full = count_flops(meta_copy(_dense(name)), resolution=224)
    return count_flops(planned(name, **choices), resolution=224).forward_flops / full.forward_flops


@pytest.mark.parametrize(
    ("name", "keep", "rule", "share"),
    [
        (name, keep, rule, share)
        for name, rows in SHARES.items()
        for keep, row in zip((0.9, 0.75, 0.5, 0.25, 0.1), rows, strict=True)
        for rule, share in zip(WidthRule, row, strict=True)
    ],
)
def test_forward_cost_left(name: str, keep: float, rule: WidthRule, share: float) -> None:
    assert share_left(name, ratio=1 - keep, width_rule=rule) == pytest.approx(share, abs=0.005)


@pytest.mark.parametrize(
    ("name", "rule", "share"),
    [
        ("resnext50_32x4d", "all", 0.257),  # the library's own pruner leaves 0.361
        ("mobilenetv2_100", "all", 0.276),
        ("mobilenetv2_100", "inner", 0.466),
        ("regnety_002", "all", 0.264),
    ],
)
def test_grouped_and_depthwise_networks_lose_their_share(
    name: str, rule: str, share: float
) -> None:
    assert share_left(name, width_rule=rule) == pytest.approx(share, abs=0.005)


@pytest.mark.parametrize("name", ["test_resnet", "test_efficientnet"])
@pytest.mark.parametrize("rule", WidthRule)
def test_a_pruned_model_computes_what_the_masked_one_does(name: str, rule: WidthRule) -> None:
    """Checks what the proof does, but on the real weights and by zeros in the columns."""
    model = bumpy(dense(name)).double().eval()
    masked = copy.deepcopy(model)
    structure = pruned(model, width_rule=rule)
    for cut in structure.cuts:
        layer = masked.get_submodule(cut.name)
        if cut.side == "in":
            assert isinstance(layer, nn.Conv2d | nn.Linear)
            with torch.no_grad():
                layer.weight[:, list(cut.removed)] = 0
    images = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    expected, found = masked(images), model(images)
    assert expected.std() > 0
    assert torch.allclose(found, expected, rtol=1e-6, atol=1e-9 * expected.abs().max().item())


@pytest.mark.parametrize("name", ["test_resnet", "test_efficientnet"])
@pytest.mark.parametrize("scope", ["layer", "global"])
def test_structure_and_state_dict_give_the_model_back(name: str, scope: str) -> None:
    model = bumpy(dense(name)).eval()
    structure = pruned(model, scope=scope)
    again = dense(name).eval()
    text = json.dumps(structure.to_dict())
    rebuild(again, PrunedStructure.from_dict(json.loads(text)), resolution=32)
    again.load_state_dict(model.state_dict())
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(model(images), again(images))
    assert (again.num_features, again.feature_info) == (model.num_features, model.feature_info)


def test_what_a_timm_model_says_of_itself_stays_true() -> None:
    model = dense("resnet18")
    pruned(model)
    assert (model.num_features, model.head_hidden_size, model.fc.in_features) == (256, 256, 256)
    assert [info["num_chs"] for info in model.feature_info] == [32, 32, 64, 128, 256]
    assert model.fc.out_features == 1000
    model.reset_classifier(7)
    assert model(torch.randn(2, 3, 32, 32)).shape == (2, 7)
    inner = dense("resnet18")
    pruned(inner, width_rule="inner")
    assert (inner.num_features, inner.fc.in_features) == (512, 512)
    regnet = dense("regnety_002")
    pruned(regnet)
    regnet.reset_classifier(7)
    assert regnet(torch.randn(2, 3, 32, 32)).shape == (2, 7)


def test_modes_and_requires_grad_stay_and_frozen_models_are_pruned_alike() -> None:
    frozen, free = dense("test_resnet"), dense("test_resnet")
    frozen.requires_grad_(requires_grad=False)
    frozen.get_classifier().requires_grad_(requires_grad=True)
    frozen.train()
    frozen.layer1.eval()
    modes = {name: module.training for name, module in frozen.named_modules()}
    gradients = {name: p.requires_grad for name, p in frozen.named_parameters()}
    assert pruned(frozen) == pruned(free)
    assert {name: module.training for name, module in frozen.named_modules()} == modes
    assert {name: p.requires_grad for name, p in frozen.named_parameters()} == gradients
    assert all(p.grad is None for p in frozen.parameters())


def test_ratio_zero_changes_nothing() -> None:
    model = dense("test_resnet")
    parameters = list(model.parameters())
    structure = pruned(model, ratio=0)
    assert structure == PrunedStructure()
    assert all(a is b for a, b in zip(parameters, model.parameters(), strict=True))
    rebuild(model, structure, resolution=32)
    assert all(a is b for a, b in zip(parameters, model.parameters(), strict=True))


def test_the_filters_of_largest_norm_stay_with_their_weights() -> None:
    for criterion, order in (("l1", 1), ("l2", 2)):
        model = Chain(nn.BatchNorm2d(8))
        weight, reader = model.first.weight.detach().clone(), model.second.weight.detach().clone()
        norms = weight.flatten(1).norm(p=order, dim=1)
        best = norms.argsort(descending=True)[:4].sort().values
        pruned(model, criterion=criterion, width_rule="inner")
        assert torch.equal(model.first.weight, weight[best])
        assert torch.equal(model.second.weight, reader[:, best])
        assert model.second.out_channels == 12


def test_random_choice_depends_on_the_seed_alone() -> None:
    plan = plan_of(criterion="random")
    runs: list[PrunedStructure] = []
    for seed in (3, 3, 4):
        model = CifarResNet()
        torch.manual_seed(len(runs))
        runs.append(prune(model, plan, head="linear", resolution=16, seed=seed))
    assert runs[0] == runs[1] != runs[2]


@pytest.mark.parametrize("ratio", [0.3, 0.5, 0.95])
def test_widths_are_rounded_as_asked(ratio: float) -> None:
    model = planned("resnext50_32x4d", ratio=ratio, round_to=8)
    convolutions = [m for m in model.modules() if isinstance(m, nn.Conv2d)]
    assert all(m.out_channels % 8 == 0 for m in convolutions)
    assert all(m.in_channels % 8 == 0 for m in convolutions[1:])
    assert model.conv1.out_channels == {0.3: 48, 0.5: 32, 0.95: 8}[ratio]  # of 64


def test_the_global_scope_spends_the_same_channels_unevenly() -> None:
    widths = {}
    for scope in ("layer", "global"):
        model = bumpy(CifarResNet(blocks=2))
        with torch.no_grad():
            model.layer3[1].conv1.weight[4:] *= 1e-3
        pruned(model, width_rule="inner", scope=scope)
        stages = (model.layer1, model.layer2, model.layer3)
        widths[scope] = [block.conv1.out_channels for stage in stages for block in stage]
    assert widths["layer"] == [8, 8, 16, 16, 32, 32]
    assert sum(widths["global"]) == sum(widths["layer"])
    assert widths["global"][-1] == 4


def test_a_users_own_network_is_pruned_inside_its_blocks() -> None:
    model: Any = CifarResNet(blocks=2)
    pruned(model, width_rule="inner", ratio=0.75)
    assert [model.layer1[1].conv1.out_channels, model.layer3[0].conv1.out_channels] == [4, 16]
    assert [model.conv1.out_channels, model.layer3[1].conv2.out_channels] == [16, 64]
    assert model(torch.randn(2, 3, 32, 32)).shape == (2, 10)


def test_a_stream_padded_with_zeros_loses_only_what_is_not_padded_and_says_so() -> None:
    model: Any = CifarResNet(blocks=2)
    structure = pruned(model)
    # the shortcut puts 8 zero channels on either side of 16, then 16 on either side of 32
    assert [model.conv1.out_channels, model.layer2[1].conv2.out_channels] == [8, 24]
    assert {skip.name: skip.channels for skip in structure.skipped} == {
        f"layer{stage}.{block}.conv2": channels
        for stage, channels in ((2, 16), (3, 48))
        for block in (0, 1)
    }
    assert "layer2.0 (CifarBlock) joins them with channels that stay" in structure.skipped[0].reason
    assert PrunedStructure.from_dict(structure.to_dict()) == structure
    assert model(torch.randn(2, 3, 32, 32)).shape == (2, 10)


@pytest.mark.parametrize(
    "between",
    [
        nn.GroupNorm(2, 8),
        nn.PReLU(8),
        nn.InstanceNorm2d(8, affine=True),
        nn.ConvTranspose2d(8, 8, 2, stride=2),
        nn.Conv2d(8, 8, 3, padding=1, groups=4),
        Squeeze(8),
    ],
    ids=lambda value: type(value).__name__,
)
@pytest.mark.parametrize("rule", WidthRule)
def test_layers_of_every_kind_are_cut(between: nn.Module, rule: WidthRule) -> None:
    model = Chain(copy.deepcopy(between))
    pruned(model, width_rule=rule)
    assert model.first.out_channels == 4
    assert model.second.out_channels == (6 if rule is WidthRule.ALL else 12)
    assert model.head.out_features == 5
    model(torch.randn(2, 3, 16, 16)).sum().backward()


def test_plans_without_effect_are_refused() -> None:
    with pytest.raises(InfeasibleError, match=r"round_to=64 removes no channel"):
        pruned(Chain(nn.Identity()), round_to=64)
    lonely = nn.Sequential(nn.Conv2d(3, 4, 16), nn.Flatten(), nn.Linear(4, 5))
    with pytest.raises(
        InfeasibleError, match="next to no channels that the width rule 'inner' may take"
    ):
        prune(lonely, PruningPlan(ratio=0.5), head="2", resolution=16, seed=0)


def test_a_head_that_is_not_the_models_is_refused() -> None:
    for head in ("fc", nn.Linear(3, 3)):
        with pytest.raises(InputError, match="is no module of CifarResNet"):
            prune(CifarResNet(), PruningPlan(ratio=0.5), head=head, resolution=16, seed=0)


def test_a_structure_of_another_model_is_refused() -> None:
    structure = pruned(CifarResNet(), width_rule="inner")
    with pytest.raises(InputError, match="fits only the dense architecture"):
        rebuild(dense("resnet18"), structure, resolution=32)


def test_a_proof_holds_for_every_choice_of_equally_many_channels() -> None:
    torch.manual_seed(0)
    structures = set()
    for _ in range(3):
        model = Chain(layers.EcaModule(8))
        structures.add(pruned(model).cuts)
        model(torch.randn(2, 3, 16, 16)).sum().backward()
    assert len(structures) > 1
