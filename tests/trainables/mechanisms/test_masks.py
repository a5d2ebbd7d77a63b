"""Masks hold: in training, under every optimiser, in what is measured, after a resume."""

from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from search_spaces.recipe import Optimizer, Schedule
from tests.trainables.recipes import make_recipe
from trainables.backbones.layers import backbone_weights
from trainables.learning.batch_norm import reestimate_batch_norm
from trainables.learning.freezing import freeze_below, train_mode
from trainables.learning.learner import Learner
from trainables.learning.precision import Precision
from trainables.mechanisms.masks import MaskedTransfer, Masks, apply_masks, mask_tensors

STEPS = 6
KINDS: list[dict[str, Any]] = [
    {},
    {"optimizer": Optimizer.ADAMW, "weight_decay": 0.1},
    {"optimizer": Optimizer.SCHEDULE_FREE_ADAMW, "schedule": Schedule.CONSTANT},
    {"clip_norm": 0.01},
]


def model() -> nn.Module:
    torch.manual_seed(0)
    made: nn.Module = timm.create_model("test_resnet", num_classes=4)
    return made


def random_masks(of: nn.Module) -> dict[str, Tensor]:
    draws = torch.Generator().manual_seed(1)
    return {
        name: torch.rand(weight.shape, generator=draws) < 0.3
        for name, weight in backbone_weights(of).items()
    }


def masked(of: nn.Module, masks: Masks | None = None) -> MaskedTransfer:
    """A transfer at work on the model, which holds to the masks."""
    transfer = MaskedTransfer()
    transfer.attach(of)
    transfer.set_masks(masks or {})
    return transfer


def learner(of: nn.Module, transfer: MaskedTransfer, **changes: Any) -> Learner:
    train_mode(of)
    return Learner(
        of,
        make_recipe(learning_rate=0.05, **changes),
        trained=of,
        seed=3,
        class_weights=None,
        precision=Precision(memory_format=torch.channels_last),
        transfer=transfer,
    )


def learn(one: Learner, steps: range) -> None:
    for step in steps:
        draws = torch.Generator().manual_seed(step)
        images = torch.randn(8, 3, 16, 16, generator=draws)
        one.learn(images, torch.arange(8) % 4, step=step, total_steps=STEPS)


def held_values(of: nn.Module, masks: dict[str, Tensor]) -> Tensor:
    weights = backbone_weights(of)
    return torch.cat([weights[name][~mask] for name, mask in masks.items()])


@pytest.mark.parametrize("changes", KINDS, ids=str)
def test_what_is_held_is_zero_after_every_step_and_the_rest_learns(changes: dict[str, Any]) -> None:
    net = model()
    masks, before = random_masks(net), {n: w.clone() for n, w in backbone_weights(net).items()}
    transfer = masked(net, masks)
    one = learner(net, transfer, **changes)
    for step in range(STEPS):
        learn(one, range(step, step + 1))
        assert not held_values(net, masks).any()
        one.average.settle([torch.randn(8, 3, 16, 16)])
        plain = transfer.plain_model(one.average.model)
        assert not held_values(plain, masks).any()
    for name, weight in backbone_weights(net).items():
        assert (weight[masks[name]] != before[name][masks[name]]).float().mean() > 0.9


def test_held_values_have_no_gradient_before_it_is_clipped() -> None:
    net = model()
    masks = random_masks(net)
    learn(learner(net, masked(net, masks)), range(1))
    grads = {name: w.grad for name, w in backbone_weights(net).items() if w.grad is not None}
    assert grads
    assert not any(grad[~masks[name]].any() for name, grad in grads.items())


def test_a_model_that_is_masked_already_is_not_copied() -> None:
    net, transfer = model(), MaskedTransfer()
    transfer.attach(net)
    assert transfer.plain_model(net) is net, "nothing is masked before masks are set"
    transfer.set_masks(random_masks(net))
    assert transfer.plain_model(net) is net
    dense = model()
    plain = transfer.plain_model(dense)
    assert plain is not dense
    assert not held_values(plain, transfer.masks).any()
    assert held_values(dense, transfer.masks).all(), "the average stays as it is"


def test_masks_may_move_and_may_leave_weights_out() -> None:
    net = model()
    transfer = masked(net)
    one = learner(net, transfer)
    assert set(transfer.zero_shares().values()) == {0.0}
    first, second, *_ = transfer.weights
    nothing = torch.zeros_like(transfer.weights[first], dtype=torch.bool)
    transfer.set_masks({first: nothing})
    learn(one, range(2))
    assert not transfer.weights[first].any()
    assert transfer.weights[second].all()
    assert transfer.zero_shares()[first] == 1.0
    held = nothing.numel()
    assert transfer.updated_params(net) == sum(p.numel() for p in net.parameters()) - held


def test_only_held_values_that_would_be_trained_are_not_updated() -> None:
    net = model()
    for name, parameter in net.named_parameters():
        parameter.requires_grad_(name.startswith("fc."))
    transfer = masked(net, random_masks(net))
    assert transfer.updated_params(net) == sum(
        p.numel() for p in net.get_submodule("fc").parameters()
    )


def test_restored_masks_are_those_that_were_saved() -> None:
    masks = random_masks(net := model())
    saved, fresh = masked(model(), masks), masked(net)
    assert saved.tensors().keys() == mask_tensors(masks).keys()
    fresh.restore(saved.tensors(), {})
    assert not held_values(net, masks).any()
    assert fresh.zero_shares() == saved.zero_shares()
    assert all(torch.equal(mask, masks[name]) for name, mask in fresh.masks.items())


def test_masks_are_applied_in_place() -> None:
    net = model()
    images = torch.randn(2, 3, 16, 16)
    plain = net.eval()(images)
    masks = random_masks(net)
    apply_masks(net, masks)
    assert not held_values(net, masks).any()
    assert not torch.equal(net(images), plain)


def test_a_schedule_free_average_is_masked_before_its_norms_are_made() -> None:
    transfer = masked(net := model(), random_masks(net))
    one = learner(net, transfer, **KINDS[2])
    learn(one, range(3))
    images = [torch.randn(8, 3, 16, 16)]
    one.average.settle(images, hold=transfer.hold)
    plain = transfer.plain_model(one.average.model)
    assert plain is one.average.model
    expected = plain.get_buffer("conv1.1.running_var").clone()
    reestimate_batch_norm(plain, images)
    assert torch.equal(plain.get_buffer("conv1.1.running_var"), expected)


def test_masks_are_held_on_frozen_weights_too() -> None:
    net = model()
    masks = random_masks(net)
    freeze_below(net, trainable_depth=0.0)
    learn(learner(net, masked(net, masks)), range(2))
    assert not held_values(net, masks).any()
