"""Optimisers: their groups, steps and saved states, against hand computation."""

import json
from typing import Any

import pytest
import timm
import torch
from torch import nn

from search_spaces.recipe import Optimizer, Schedule
from trainables.learning.freezing import freeze_below
from trainables.learning.optimizers import (
    STATE_COPIES,
    build_optimizer,
    optimizer_numbers,
    optimizer_tensors,
    restore_optimizer,
)
from trainables.learning.precision import Precision
from trainables.learning.schedules import set_learning_rate


def build(model: nn.Module, kind: Optimizer = Optimizer.SGD, **changes: Any) -> Any:
    """An optimiser without decay, but for the changes."""
    values: dict[str, Any] = {"learning_rate": 0.1, "weight_decay": 0.0, "layer_decay": 1.0}
    return build_optimizer(kind, model, **values | changes)


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
    weight = model.get_parameter("0.weight")
    with torch.no_grad():
        weight.fill_(1.0)
    optimizer = build(model, kind, **changes)
    set_learning_rate(optimizer, schedule=Schedule.CONSTANT, step=20, total_steps=40)
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
