"""Anchored values stay as they are to the bit, whatever the optimiser and the average do."""

from copy import deepcopy
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from search_spaces.recipe import Optimizer, Schedule
from tests.trainables.recipes import make_recipe
from trainables.learning.batch_norm import reestimate_batch_norm, trained_batch_norms
from trainables.learning.freezing import train_mode
from trainables.learning.learner import Learner
from trainables.learning.precision import Precision
from trainables.mechanisms.anchors import AnchoredTransfer, anchor_tensors
from trainables.mechanisms.masks import Masks

NAMES = ("conv1.0.weight", "layer1.0.bn1.weight", "layer4.0.conv2.weight", "layer2.0.bn2.bias")
FROZEN = ("layer3.0.conv1.weight",)
STEPS = 4
OPTIMIZERS: list[dict[str, Any]] = [
    {"optimizer": Optimizer.SGD},
    {"optimizer": Optimizer.ADAMW},
    {"optimizer": Optimizer.SCHEDULE_FREE_ADAMW, "schedule": Schedule.CONSTANT},
]


def backbone() -> nn.Module:
    torch.manual_seed(0)
    made: nn.Module = timm.create_model("test_resnet", num_classes=4)
    return made


def some_masks(model: nn.Module) -> Masks:
    draws = torch.Generator().manual_seed(1)
    return {n: torch.rand(model.get_parameter(n).shape, generator=draws) < 0.3 for n in NAMES}


def anchored(model: nn.Module, masks: Masks) -> AnchoredTransfer:
    """A transfer at work on the model, which holds what the masks do not free at its values."""
    transfer = AnchoredTransfer(frozen=FROZEN)
    transfer.attach(model)
    transfer.restore(anchor_tensors(masks, model.state_dict()), {})
    return transfer


def learner_of(model: nn.Module, transfer: AnchoredTransfer, **changes: Any) -> Learner:
    train_mode(model)
    recipe = make_recipe(learning_rate=0.05, weight_decay=0.1, **changes)
    return Learner(
        model,
        recipe,
        trained=model,
        seed=3,
        class_weights=None,
        precision=Precision(memory_format=torch.channels_last),
        transfer=transfer,
    )


def learn(learner: Learner, *, step: int) -> None:
    images = torch.randn(8, 3, 32, 32, generator=torch.Generator().manual_seed(step))
    learner.learn(images, torch.arange(8) % 4, step=step, total_steps=STEPS)


def assert_held(model: nn.Module, masks: Masks, before: dict[str, Tensor]) -> None:
    for name, mask in masks.items():
        assert torch.equal(model.get_parameter(name)[~mask], before[name][~mask]), name
    for name in FROZEN:
        assert torch.equal(model.get_parameter(name), before[name]), name


@pytest.mark.parametrize("changes", OPTIMIZERS, ids=lambda changes: changes["optimizer"])
def test_held_values_are_bit_identical_and_free_ones_move(changes: dict[str, Any]) -> None:
    model = backbone()
    before = deepcopy(model.state_dict())
    masks = some_masks(model)
    transfer = anchored(model, masks)
    learner = learner_of(model, transfer, **changes)
    for step in range(STEPS):
        learn(learner, step=step)
        assert_held(model, masks, before)
    images = torch.randn(8, 3, 32, 32)
    learner.average.settle([images])
    plain = transfer.plain_model(learner.average.model)
    assert_held(plain, masks, before)
    for name, mask in masks.items():
        assert (plain.get_parameter(name)[mask] != before[name][mask]).all(), name
    whole = "layer4.0.conv1.weight"
    assert (plain.get_parameter(whole) != before[whole]).any(), "without a mask it is free"


def test_a_schedule_free_averages_norms_follow_the_held_weights() -> None:
    model = backbone()
    transfer = anchored(model, some_masks(model))
    learner = learner_of(model, transfer, **OPTIMIZERS[-1])
    for step in range(STEPS):
        learn(learner, step=step)
    images = [torch.randn(8, 3, 32, 32)]
    learner.average.settle(images, hold=transfer.hold)
    plain = transfer.plain_model(learner.average.model)
    assert plain is learner.average.model
    expected = deepcopy(plain)
    reestimate_batch_norm(expected, images, only=trained_batch_norms(model))
    for name, value in plain.state_dict().items():
        assert torch.equal(value, expected.state_dict()[name]), name
    learner.average.settle(images)
    drifted = transfer.plain_model(learner.average.model)
    assert not torch.equal(
        drifted.get_buffer("conv1.1.running_var"), expected.get_buffer("conv1.1.running_var")
    )


def test_what_is_held_already_is_not_copied() -> None:
    model = backbone()
    transfer = anchored(model, some_masks(model))
    assert transfer.plain_model(model) is model
    with torch.no_grad():
        model.get_parameter(NAMES[0]).mul_(2)
    plain = transfer.plain_model(model)
    assert plain is not model
    assert (model.get_parameter(NAMES[0]) == 2 * transfer.anchors[NAMES[0]]).all()


def test_updated_params_are_the_free_values() -> None:
    model = backbone()
    masks = some_masks(model)
    transfer = anchored(model, masks)
    held = sum(int((~mask).sum()) for mask in masks.values())
    frozen = model.get_parameter(FROZEN[0])
    assert not frozen.requires_grad
    total = sum(p.numel() for p in model.parameters())
    assert transfer.updated_params(model) == total - held - frozen.numel()
    model.get_parameter(NAMES[0]).requires_grad = False
    others = sum(int((~masks[name]).sum()) for name in NAMES[1:])
    first = model.get_parameter(NAMES[0]).numel()
    assert transfer.updated_params(model) == total - others - frozen.numel() - first


def test_a_restored_transfer_holds_the_first_ones_anchors() -> None:
    model = backbone()
    before = deepcopy(model.state_dict())
    masks = some_masks(model)
    first = anchored(model, masks)
    moved = backbone()
    with torch.no_grad():
        for parameter in moved.parameters():
            parameter.add_(1)
    second = AnchoredTransfer(frozen=FROZEN)
    second.attach(moved)
    second.restore(first.tensors(), first.state())
    second.after_update(step=0, total_steps=1)
    for name, mask in masks.items():
        assert torch.equal(moved.get_parameter(name)[~mask], before[name][~mask])
        assert torch.equal(moved.get_parameter(name)[mask], before[name][mask] + 1)
    assert second.tensors().keys() == first.tensors().keys()
