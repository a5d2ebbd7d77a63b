"""What is trained and how fast, against hand computation."""

import math

import pytest
import timm
import torch
from cifar_resnet import cifar_resnet
from torch import nn

from trainables.optimizers import (
    RunningAverage,
    freeze_below,
    set_learning_rate,
    sgd,
    train_mode,
)


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


def test_groups_decay_by_layer_and_spare_norms_and_biases() -> None:
    model = timm.create_model("test_resnet")
    freeze_below(model, trainable_depth=0.4)
    optimizer = sgd(model, learning_rate=0.1, weight_decay=0.01, layer_decay=0.5)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    seen = {}
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            seen[names[id(parameter)]] = group["peak_lr"], group["weight_decay"]
    assert seen["fc.weight"] == (0.1, 0.01)
    assert seen["fc.bias"] == (0.1, 0.0)
    assert seen["layer4.0.conv1.weight"] == (0.05, 0.01)
    assert seen["layer4.0.bn1.weight"] == (0.05, 0.0)
    assert seen["layer3.0.conv1.weight"] == (0.025, 0.01)
    assert set(seen) == {name for name, p in model.named_parameters() if p.requires_grad}


def test_a_step_is_nesterovs() -> None:
    model = nn.Sequential(nn.Linear(1, 1, bias=False))
    weight = model[0].weight
    with torch.no_grad():
        weight.fill_(1.0)
    optimizer = sgd(model, learning_rate=0.1, weight_decay=0.0, layer_decay=1.0)
    set_learning_rate(optimizer, step=0, total_steps=1)
    for _ in range(2):
        weight.grad = torch.full_like(weight, 2.0)
        optimizer.step()
    # momentum m = 2, then 0.9 · 2 + 2 = 3.8; a step is lr · (gradient + 0.9 · m)
    assert weight.item() == pytest.approx(1 - 0.1 * (2 + 0.9 * 2) - 0.1 * (2 + 0.9 * 3.8))


def rates(total: int) -> list[float]:
    optimizer = sgd(
        nn.Sequential(nn.Linear(1, 1)), learning_rate=0.4, weight_decay=0, layer_decay=1
    )
    found = []
    for step in range(total):
        set_learning_rate(optimizer, step=step, total_steps=total)
        found.append(optimizer.param_groups[0]["lr"])
    return found


def test_the_rate_warms_up_and_falls_on_a_cosine() -> None:
    found = rates(40)
    assert found[:5] == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.4])
    assert found[22] == pytest.approx(0.2)  # half-way from step 4 to 40
    assert found[13] == pytest.approx(0.2 * (1 + math.cos(math.pi / 4)))
    assert 0 < found[-1] < 0.01
    assert found[4:] == sorted(found[4:], reverse=True)


@pytest.mark.parametrize(("total", "expected"), [(1, [0.4]), (2, [0.4, 0.4]), (3, [0.4, 0.4, 0.2])])
def test_schedules_of_a_few_steps(total: int, expected: list[float]) -> None:
    assert rates(total) == pytest.approx(expected)


def test_every_group_keeps_its_own_peak() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    optimizer = sgd(model, learning_rate=1.0, weight_decay=0, layer_decay=0.5)
    set_learning_rate(optimizer, step=22, total_steps=40)
    found = sorted({group["lr"] for group in optimizer.param_groups})
    assert found == pytest.approx([0.25, 0.5])


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
