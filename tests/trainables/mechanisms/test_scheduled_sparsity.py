"""Masks move when the schedule moves, and a plain model is as sparse as in the end."""

import timm
import torch
from torch import nn

from tests.trainables.mechanisms.sparse_models import WEIGHTS, zeros, zeros_by_weight
from trainables.mechanisms.scheduled_sparsity import ScheduledSparsity
from trainables.mechanisms.sparsity import SparsityScope

SHARES = (0.0, 0.5, 0.5, 1.0, 0.0, 1.0)
ASKED = round(0.8 * WEIGHTS)


def model() -> nn.Module:
    torch.manual_seed(0)
    made: nn.Module = timm.create_model("test_resnet", num_classes=4)
    return made


def scheduled(net: nn.Module, *, scope: SparsityScope = SparsityScope.LAYER) -> ScheduledSparsity:
    transfer = ScheduledSparsity(lambda step, _: SHARES[step], sparsity=0.8, scope=scope)
    transfer.attach(net)
    return transfer


def nudge(net: nn.Module) -> None:
    """Moves every value, as an optimiser does."""
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))


def test_zeros_follow_the_shares() -> None:
    for scope in SparsityScope:
        net = model()
        transfer = scheduled(net, scope=scope)
        for step, share in enumerate(SHARES):
            transfer.before_forward(step=step, total_steps=len(SHARES))
            nudge(net)
            transfer.after_update(step=step, total_steps=len(SHARES))
            assert abs(zeros(net) - share * ASKED) <= 8
            if share == 1.0:
                assert zeros(net) == ASKED


def test_masks_stay_while_the_schedule_does() -> None:
    net = model()
    transfer = scheduled(net)
    moved = []
    for step in range(len(SHARES)):
        before = dict(transfer.masks)
        transfer.before_forward(step=step, total_steps=len(SHARES))
        moved.append(any(transfer.masks[name] is not mask for name, mask in before.items()))
    assert moved == [False, True, False, True, True, True]


def test_a_plain_model_is_compressed_from_what_the_masks_left() -> None:
    for scope in SparsityScope:
        net = model()
        transfer = scheduled(net, scope=scope)
        for step in range(2):
            transfer.before_forward(step=step, total_steps=len(SHARES))
        average = model()
        nudge(average)
        plain = transfer.plain_model(average)
        assert zeros(plain) == ASKED
        assert zeros(average) == 0, "the average stays as it is"
        for name, mask in transfer.masks.items():
            assert not plain.get_parameter(name)[~mask].any()
        transfer.hold(average)
        assert zeros_by_weight(average) == zeros_by_weight(plain)
        assert transfer.plain_model(average) is average


def test_what_the_end_holds_at_zero_is_not_updated() -> None:
    net = model()
    transfer = scheduled(net)
    expected = sum(p.numel() for p in net.parameters()) - ASKED
    assert transfer.updated_params(net) == expected
    transfer.before_forward(step=1, total_steps=len(SHARES))
    assert transfer.updated_params(net) == expected
