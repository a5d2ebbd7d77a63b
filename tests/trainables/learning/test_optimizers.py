"""What is trained and by what, against hand computation."""

import json
import math
from typing import Any

import pytest
import timm
import torch
from torch import nn

from search_spaces.recipe import Optimizer, Schedule
from tests.trainables.backbones.cifar_resnet import cifar_resnet
from trainables.learning.optimizers import (
    STATE_COPIES,
    RunningAverage,
    build_optimizer,
    freeze_below,
    optimizer_numbers,
    optimizer_tensors,
    restore_optimizer,
    train_mode,
)
from trainables.learning.precision import Precision
from trainables.learning.schedules import set_learning_rate


def build(model: nn.Module, kind: Optimizer = Optimizer.SGD, **changes: Any) -> Any:
    """An optimiser without decay, but for the changes."""
    values: dict[str, Any] = {"learning_rate": 0.1, "weight_decay": 0.0, "layer_decay": 1.0}
    return build_optimizer(kind, model, **values | changes)


def trained(model: nn.Module) -> set[str]:
    """The first names of the parameters that are trained."""
    return {name.partition(".")[0] for name, p in model.named_parameters() if p.requires_grad}


@pytest.mark.parametrize(
    ("depth", "expected"),
    [
        (0.0, {"fc"}),
        (0.2, {"fc", "layer4"}),
        (0.4, {"fc", "layer4", "layer3"}),
        (0.5, {"fc", "layer4", "layer3"}),
        (1.0, {"fc", "layer4", "layer3", "layer2", "layer1", "conv1", "bn1"}),
    ],
)
def test_depth_counts_layers_from_the_head(depth: float, expected: set[str]) -> None:
    model = timm.create_model("test_resnet")
    freeze_below(model, trainable_depth=depth)
    assert trained(model) == expected


def test_a_deeper_share_thaws_what_a_smaller_one_froze() -> None:
    model = cifar_resnet(4)
    freeze_below(model, trainable_depth=0.0)
    assert trained(model) == {"linear"}
    freeze_below(model, trainable_depth=1.0)
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_frozen_layers_are_in_eval_mode_and_trained_ones_are_not() -> None:
    model = timm.create_model("test_resnet", drop_path_rate=0.5, drop_rate=0.1)
    freeze_below(model, trainable_depth=0.4)
    train_mode(model)
    for name, module in model.named_modules():
        if name.startswith(("conv1", "bn1", "layer1", "layer2")):
            assert not module.training, name  # batch norms and stochastic depth alike
        if name.startswith(("layer3", "layer4", "fc")):
            assert module.training, name


def test_train_mode_undoes_eval_mode() -> None:
    model = timm.create_model("test_resnet").eval()
    train_mode(model)
    assert all(module.training for module in model.modules())


def decays(model: nn.Module, kind: Optimizer, **changes: Any) -> dict[str, tuple[float, float]]:
    """Peak learning rate and decay of every parameter that is trained."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return {
        names[id(parameter)]: (group["peak_lr"], group["weight_decay"])
        for group in build(model, kind, **changes).param_groups
        for parameter in group["params"]
    }


@pytest.mark.parametrize("kind", Optimizer)
def test_groups_decay_by_layer_and_spare_norms_and_biases(kind: Optimizer) -> None:
    model = timm.create_model("test_resnet")
    freeze_below(model, trainable_depth=0.4)
    seen = decays(model, kind, weight_decay=0.01, layer_decay=0.5)
    assert seen["fc.weight"] == (0.1, 0.01)
    assert seen["fc.bias"] == (0.1, 0.0)
    assert seen["layer4.0.conv1.weight"] == (0.05, 0.01)
    assert seen["layer4.0.bn1.weight"] == (0.05, 0.0)
    assert seen["layer3.0.conv1.weight"] == (0.025, 0.01)
    assert set(seen) == {name for name, p in model.named_parameters() if p.requires_grad}


@pytest.mark.parametrize(
    ("name", "spared", "decayed"),
    [
        ("test_convnext", "stages.0.blocks.0.gamma", "stages.0.blocks.0.conv_dw.weight"),
        ("test_nfnet", "stages.0.0.conv1.gain", "stages.0.0.conv1.weight"),
    ],
)
def test_gains_are_spared_whatever_their_dimensions(name: str, spared: str, decayed: str) -> None:
    seen = decays(timm.create_model(name), Optimizer.ADAMW, weight_decay=0.01)
    assert seen[spared][1] == 0.0
    assert seen[decayed][1] == 0.01


def weight_after(kind: Optimizer, gradients: list[float], **changes: Any) -> float:
    """A single weight, 1 at first, after steps along the gradients."""
    model = nn.Sequential(nn.Linear(2, 2, bias=False))
    weight = model[0].weight
    with torch.no_grad():
        weight.fill_(1.0)
    optimizer = build(model, kind, **changes)
    set_learning_rate(optimizer, schedule=Schedule.CONSTANT, step=5, total_steps=9)
    for gradient in gradients:
        weight.grad = torch.full_like(weight, gradient)
        optimizer.step()
    return float(weight.detach()[0, 0])


def test_a_step_is_nesterovs() -> None:
    # momentum m = 2, then 0.9 · 2 + 2 = 3.8; a step is lr · (gradient + 0.9 · m)
    expected = 1 - 0.1 * (2 + 0.9 * 2) - 0.1 * (2 + 0.9 * 3.8)
    assert weight_after(Optimizer.SGD, [2.0, 2.0]) == pytest.approx(expected)


def test_a_step_is_adams_and_its_decay_is_decoupled() -> None:
    # equal gradients: both averages are exact after correction, and a step is lr · sign
    found = weight_after(Optimizer.ADAMW, [2.0, 2.0], weight_decay=0.5)
    assert found == pytest.approx((1 * 0.95 - 0.1) * 0.95 - 0.1, abs=1e-6)


def test_a_schedule_free_step_is_the_papers() -> None:
    # z falls by lr · sign; x is the mean of the z's; gradients are taken at y = 0.1 · z + 0.9 · x
    found = weight_after(Optimizer.SCHEDULE_FREE_ADAMW, [2.0, 2.0])
    z = [0.9, 0.8]
    assert found == pytest.approx(0.1 * z[1] + 0.9 * sum(z) / 2, abs=1e-6)


@pytest.mark.parametrize("kind", Optimizer)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_a_restored_optimiser_goes_on_bit_by_bit(
    kind: Optimizer, layout: torch.memory_format
) -> None:
    def stepped(model: nn.Module, optimizer: Any, steps: range) -> None:
        for step in steps:
            torch.manual_seed(step)
            set_learning_rate(optimizer, schedule=Schedule.CONSTANT, step=step, total_steps=40)
            optimizer.zero_grad()
            model(torch.randn(3, 2, 5, 5)).square().mean().backward()
            optimizer.step()

    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 3, 3), nn.Flatten(), nn.Linear(27, 4))
    Precision(memory_format=layout).lay_out(model)
    twin = nn.Sequential(nn.Conv2d(2, 3, 3), nn.Flatten(), nn.Linear(27, 4))
    Precision(memory_format=layout).lay_out(twin)
    optimizer, second = build(model, kind), build(twin, kind)
    stepped(model, optimizer, range(6))
    twin.load_state_dict(model.state_dict())
    numbers = json.loads(json.dumps(optimizer_numbers(optimizer)))
    tensors = {k: v.clone().contiguous() for k, v in optimizer_tensors(optimizer, model).items()}
    restore_optimizer(second, twin, tensors=tensors, numbers=numbers)
    for value in optimizer_tensors(second, twin).values():
        if value.ndim == 4:
            assert value.is_contiguous(memory_format=layout)
    stepped(model, optimizer, range(6, 12))
    stepped(twin, second, range(6, 12))
    for one, other in zip(model.parameters(), twin.parameters(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("kind", Optimizer)
def test_an_optimiser_keeps_as_many_tensors_a_weight_as_are_counted(kind: Optimizer) -> None:
    model = nn.Sequential(nn.Linear(5, 3))
    optimizer = build(model, kind)
    model(torch.ones(2, 5)).sum().backward()
    optimizer.step()
    kept = sum(t.numel() for t in optimizer_tensors(optimizer, model).values() if t.ndim)
    assert kept == STATE_COPIES[kind] * sum(p.numel() for p in model.parameters())


def test_the_average_is_the_weighted_sum_of_its_formula() -> None:
    model = nn.BatchNorm1d(1)
    average = RunningAverage(model)
    history = [3.0, -1.0, 2.0, 5.0]
    for step, value in enumerate(history, start=1):
        with torch.no_grad():
            model.weight.fill_(value)
            model.running_mean.fill_(10 * value)
            model.num_batches_tracked.fill_(step)
        average.update(step=step)
    # weights of Shamir & Zhang unrolled: w_t · prod of (1 - share) after t, share = 9 / (t + 8)
    shares = [9 / (t + 8) for t in range(1, 5)]
    expected = sum(
        value * share * math.prod(1 - later for later in shares[t + 1 :])
        for t, (value, share) in enumerate(zip(history, shares, strict=True))
    )
    assert average.model.weight.item() == pytest.approx(expected)
    assert average.model.running_mean.item() == pytest.approx(10 * expected)
    assert average.model.num_batches_tracked.item() == 4


def test_the_first_step_replaces_what_the_average_began_with() -> None:
    model = nn.Linear(2, 2)
    average = RunningAverage(model)
    with torch.no_grad():
        model.weight.fill_(7.0)
    average.update(step=1)
    assert torch.equal(average.model.weight, model.weight)
    assert average.model.weight.data_ptr() != model.weight.data_ptr()


def test_the_average_neither_trains_nor_follows_what_is_frozen() -> None:
    model = nn.Linear(2, 2)
    model.weight.requires_grad_(requires_grad=False)
    average = RunningAverage(model)
    before = model.weight.clone()
    with torch.no_grad():
        model.weight.fill_(7.0)
        model.bias.fill_(3.0)
    average.update(step=1)
    assert torch.equal(average.model.weight, before)
    assert torch.equal(average.model.bias, model.bias)
    assert not any(p.requires_grad for p in average.model.parameters())
    assert not average.model.training
