"""Deltas leave the pretrained weights alone, cost what finetuning costs, and merge for good."""

from collections.abc import Callable
from copy import deepcopy

import pytest
import timm
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils import parametrize

from search_spaces.recipe import Optimizer
from tests.trainables.backbones.cifar_resnet import cifar_resnet
from trainables.backbones.layers import backbone_weights, layer_of_parameter, norm_parameters
from trainables.backbones.skeleton import structure_key
from trainables.costs.flops import count_flops
from trainables.learning.averages import RunningAverage, ScheduleFreeAverage
from trainables.learning.optimizers import build_optimizer
from trainables.learning.precision import Precision
from trainables.mechanisms.deltas import (
    GatedDelta,
    delta_room,
    gated_deltas,
    largest_fitting,
    open_gates,
)
from trainables.mechanisms.reparametrization import merge

MODELS: dict[str, Callable[[], nn.Module]] = {
    "test_resnet": lambda: timm.create_model("test_resnet", num_classes=5),
    "mobilenetv2": lambda: timm.create_model("mobilenetv2_050", num_classes=5),  # depthwise
    "same_padding": lambda: timm.create_model("tf_mobilenetv3_small_minimal_100", num_classes=5),
    "users_own": lambda: cifar_resnet(5),
}
EVERY = pytest.mark.parametrize("name", MODELS)


def made(name: str) -> nn.Module:
    torch.manual_seed(0)
    return MODELS[name]().eval()


def with_deltas(plain: nn.Module, *, per_filter: bool = False) -> nn.Module:
    model = deepcopy(plain)
    for name, weight in backbone_weights(model).items():
        weight.requires_grad = False
        layer = model.get_submodule(name.rpartition(".")[0])
        delta = GatedDelta(weight.detach(), per_filter=per_filter, score=0.0)
        parametrize.register_parametrization(layer, "weight", delta)
    return model


def images() -> Tensor:
    return torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def noise(model: nn.Module) -> None:
    draws = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for delta in gated_deltas(model):
            delta.delta.copy_(torch.randn(delta.delta.shape, generator=draws))


@EVERY
def test_the_first_model_is_the_backbone_and_its_gradients_those_of_finetuning(name: str) -> None:
    plain = made(name)
    model = with_deltas(plain)
    assert torch.equal(model(images()), plain(images()))
    for one in (plain, model):
        one(images()).square().sum().backward()
    expected = [weight.grad for weight in backbone_weights(plain).values()]
    for delta, gradient in zip(gated_deltas(model), expected, strict=True):
        assert gradient is not None
        assert torch.equal(_gradient(delta.delta), gradient)


@EVERY
def test_closed_gates_leave_the_pretrained_values_and_merging_keeps_them(name: str) -> None:
    plain = made(name)
    model = with_deltas(plain, per_filter=True)
    noise(model)
    deltas = gated_deltas(model)
    chosen = torch.arange(sum(delta.units for delta in deltas)) % 2 == 0
    open_gates(deltas, chosen)
    before = model(images())
    merged = deepcopy(model)
    merge(merged)
    assert torch.equal(merged(images()), before)
    assert torch.equal(model(images()), before), "the model that is trained lost its weights"
    assert {n: p.shape for n, p in merged.state_dict().items()} == {
        n: p.shape for n, p in plain.state_dict().items()
    }
    assert [type(m) for m in merged.modules()] == [type(m) for m in plain.modules()]
    filters = chosen.split([delta.units for delta in deltas])
    pretrained = backbone_weights(plain)
    for (weight_name, weight), opened, delta in zip(
        backbone_weights(merged).items(), filters, deltas, strict=True
    ):
        assert torch.equal(weight[~opened], pretrained[weight_name][~opened])
        assert torch.equal(
            weight[opened], pretrained[weight_name][opened] + delta.delta.detach()[opened]
        )


def test_a_scores_gradient_is_its_gates_open_or_closed() -> None:
    weight, pull = torch.randn(4, 3), torch.randn(4, 3)
    delta = GatedDelta(weight, per_filter=True, score=0.15)
    with torch.no_grad():
        delta.delta.copy_(torch.randn(4, 3))
    delta.open[1:3] = False
    (delta(weight) * pull).sum().backward()
    assert torch.allclose(_gradient(delta.score), (pull * delta.delta).sum(1, keepdim=True))
    assert torch.equal(_gradient(delta.delta), pull * delta.open)


@EVERY
def test_every_parameter_keeps_its_layer_and_its_rate(name: str) -> None:
    plain = made(name)
    model = with_deltas(plain)
    of_plain, layers = layer_of_parameter(plain), layer_of_parameter(model)

    def owner(parameter: str) -> str:
        return parameter.partition(".parametrizations.")[0]

    expected = {owner(n).removesuffix(".weight"): layer for n, layer in of_plain.items()}
    for parameter, layer in layers.items():
        assert layer == expected[owner(parameter).removesuffix(".weight")], parameter

    optimizer = build_optimizer(
        Optimizer.SGD, model, learning_rate=0.1, weight_decay=0.01, layer_decay=0.5
    )
    groups = {id(p): group for group in optimizer.param_groups for p in group["params"]}
    for (weight, _), delta in zip(
        backbone_weights(plain).items(), gated_deltas(model), strict=True
    ):
        group = groups[id(delta.delta)]
        distance = max(of_plain.values()) - of_plain[weight]
        assert group["peak_lr"] == pytest.approx(0.1 * 0.5**distance)
        assert group["weight_decay"] == 0.01
        assert groups[id(delta.score)]["weight_decay"] == 0


@pytest.mark.parametrize("name", ["test_resnet", "same_padding"])
def test_deltas_cost_no_flops(name: str) -> None:
    plain = made(name)
    model = with_deltas(plain)
    assert count_flops(model, resolution=32) == count_flops(plain, resolution=32)
    again = structure_key(with_deltas(plain), resolution=32)
    assert structure_key(model, resolution=32) == again, "traced anew for every trial"


@pytest.mark.parametrize("optimizer", Optimizer)
def test_open_deltas_train_as_weights_do(optimizer: Optimizer) -> None:
    def trained(model: nn.Module) -> nn.Module:
        model = Precision.of(torch.device("cpu")).lay_out(model)
        steps = build_optimizer(
            optimizer, model, learning_rate=0.01, weight_decay=0.0, layer_decay=1.0
        )
        average = (
            ScheduleFreeAverage(model, steps)
            if optimizer is Optimizer.SCHEDULE_FREE_ADAMW
            else RunningAverage(model)
        )
        for step in range(3):
            steps.zero_grad()
            model(images()).square().mean().backward()
            steps.step()
            average.update(step=step + 1)
        average.settle(())
        return average.model

    plain = made("test_resnet")
    model = trained(with_deltas(plain))
    merge(model)
    expected = trained(plain)(images())
    moved = (expected - made("test_resnet")(images())).abs().max()
    assert (model(images()) - expected).abs().max() < 0.02 * moved


@given(
    units=st.lists(st.tuples(st.floats(-1, 1), st.integers(1, 9)), min_size=1, max_size=30),
    room=st.integers(0, 60),
)
def test_the_largest_that_fit_are_chosen(units: list[tuple[float, int]], room: int) -> None:
    scores = torch.tensor([score for score, _ in units])
    sizes = torch.tensor([size for _, size in units])
    chosen = largest_fitting(scores, sizes=sizes, room=room)
    assert sizes[chosen].sum() <= room
    for index in (~chosen).nonzero().flatten().tolist():
        above = chosen & (scores >= scores[index])
        assert sizes[above].sum() + sizes[index] > room


def test_a_score_of_minus_infinity_is_never_chosen() -> None:
    scores = torch.tensor([-torch.inf, 0.0])
    assert largest_fitting(scores, sizes=torch.tensor([1, 1]), room=9).tolist() == [False, True]


def test_the_room_is_what_norms_leave_of_the_budget() -> None:
    model = made("test_resnet")
    backbone = sum(p.numel() for n, p in model.named_parameters() if not n.startswith("fc."))
    norms = sum(p.numel() for n, p in model.named_parameters() if n in norm_parameters(model))
    assert delta_room(model, budget=1.0) == backbone - norms
    assert delta_room(model, budget=0.5) == backbone // 2 - norms
    assert delta_room(model, budget=1e-9) == -norms


def _gradient(parameter: nn.Parameter) -> Tensor:
    assert parameter.grad is not None
    return parameter.grad
