"""The bill: sums of the prices, what a measurement takes of them, and how it goes on."""

import pytest
import torch
from torch import nn

from trainables.costs.bill import Bill, Prices
from trainables.costs.skippable import SkippableFlops
from trainables.measurement import Measurement
from trainables.rungs import Stop

PRICES = Prices(
    inference_flops=2 * 12.0,
    preparation_flops=1000.0,
    setup_flops=500.0,
    step_flops=100.0,
    settling_flops=30.0,
    eval_setup_flops=7.0,
    eval_flops=40.0,
)
HELD = {"0.weight": 0.5}
FORWARD = 2 * 12 * 0.5
"""FLOPs of an image's pass that meet the half of the twelve weights which is held."""


def net() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 4, 1, bias=False), nn.AdaptiveAvgPool2d(1))


def new_bill() -> Bill:
    skippable = SkippableFlops(net(), resolution=1)
    return Bill(PRICES, skippable=skippable, device=torch.device("cpu"))


def measured(bill: Bill, *, train_flops: float = 2000.0, trunk_steps: int = 0) -> Measurement:
    model = net()
    with torch.no_grad():
        model.get_parameter("0.weight").fill_(1.0)[:1] = 0.0
    return bill.measured(
        model,
        stop=Stop(rung=3, steps=2, train_flops=train_flops),
        images_seen=20,
        updated_params=8,
        error=0.25,
        loss=1.5,
        trunk_steps=trunk_steps,
    )


def test_a_measurement_bills_what_was_executed_and_no_more() -> None:
    bill = new_bill()
    bill.prepared()
    bill.opened(200.0, images=0, shares={})  # of 500: others had done the rest
    for _ in range(2):
        bill.stepped(images=10, shares={})
    bill.settled()
    assert bill.unbilled_flops == 1000 + 200 + 2 * 100 + 30
    first = measured(bill)
    assert first.executed_flops == 1430
    assert bill.unbilled_flops == 0
    bill.stepped(images=10, shares={})
    assert measured(bill).executed_flops == 100


def test_every_look_at_validation_is_added_to_what_came_before_the_first() -> None:
    bill = new_bill()
    assert [measured(bill).eval_flops for _ in range(3)] == [47, 87, 127]


def test_what_is_held_at_zero_is_skippable_forward_and_in_steps() -> None:
    bill = new_bill()
    bill.opened(0.0, images=4, shares=HELD)
    assert bill.skippable_flops == 4 * FORWARD
    bill.stepped(images=10, shares=HELD)
    assert bill.skippable_flops == (4 + 2 * 10) * FORWARD  # the images need no gradient
    assert measured(bill).sparse_train_flops == 2000 - bill.skippable_flops


def test_a_measurement_describes_the_model_and_the_stop() -> None:
    bill = new_bill()
    bill.worked(1.5)
    bill.worked(0.5)
    found = measured(bill)
    assert (found.rung, found.train_flops, found.images_seen) == (3, 2000, 20)
    assert (found.params, found.nonzero_params, found.updated_params) == (12, 9, 8)
    assert (found.inference_flops, found.sparse_inference_flops) == (24, 18)
    assert (found.val_error, found.val_loss, found.test_error) == (0.25, 1.5, None)
    assert found.train_seconds == 2
    assert found.peak_memory_bytes is None, "a CPU keeps no account"


def test_a_trunk_costs_what_comes_before_it_and_its_steps() -> None:
    assert measured(new_bill()).trunk_flops == 0
    assert measured(new_bill(), trunk_steps=3).trunk_flops == 1000 + 500 + 3 * 100


def test_a_resumed_bill_goes_on_where_the_other_stood() -> None:
    one, other = new_bill(), new_bill()
    one.prepared()
    one.worked(2.0)
    one.stepped(images=10, shares=HELD)
    measured(one)
    other.resume(looks=1, seconds=one.seconds, skippable_flops=one.skippable_flops)
    assert other.unbilled_flops == 0, "nothing is executed yet in this attempt"
    for bill in (one, other):
        bill.worked(1.0)
        bill.stepped(images=10, shares=HELD)
    assert measured(other, train_flops=3000.0) == measured(one, train_flops=3000.0)


@pytest.mark.parametrize("images", [0, 10])
def test_a_dense_trial_skips_nothing(images: int) -> None:
    bill = new_bill()
    bill.stepped(images=images, shares={})
    assert measured(bill).sparse_train_flops == 2000
