"""The learning rate at each step, against hand computation."""

import math

import pytest
import torch
from schedulefree import AdamWScheduleFree
from torch import nn

from search_spaces.recipe import Optimizer, Schedule
from trainables.learning.optimizers import build_optimizer
from trainables.learning.schedules import schedule_factor, set_learning_rate, steps_before_decay

STAYING = (Schedule.CONSTANT, Schedule.WARMUP_STABLE_DECAY)
FALLING = [schedule for schedule in Schedule if schedule is not Schedule.CONSTANT]


def factors(total: int, schedule: Schedule = Schedule.COSINE) -> list[float]:
    return [schedule_factor(schedule, step=step, total_steps=total) for step in range(total)]


@pytest.mark.parametrize("schedule", [Schedule.COSINE, Schedule.LINEAR])
def test_a_rate_that_falls_at_once_warms_up_over_a_tenth(schedule: Schedule) -> None:
    assert factors(40, schedule)[:5] == pytest.approx([0.25, 0.5, 0.75, 1.0, 1.0])


@pytest.mark.parametrize("schedule", FALLING)
def test_the_rate_falls_to_zero_where_the_compute_is_spent(schedule: Schedule) -> None:
    found = factors(200, schedule)
    assert found[20:] == sorted(found[20:], reverse=True)
    assert 0 <= found[-1] < 0.02
    assert schedule_factor(schedule, step=200, total_steps=200) == 0


def test_the_cosine() -> None:
    found = factors(40)
    assert found[22] == pytest.approx(0.5)  # half-way from step 4 to 40
    assert found[13] == pytest.approx((1 + math.cos(math.pi / 4)) / 2)


def test_the_line() -> None:
    assert factors(40, Schedule.LINEAR)[4::9] == pytest.approx([1, 0.75, 0.5, 0.25])


@pytest.mark.parametrize("schedule", STAYING)
def test_a_rate_that_stays_begins_alike_whatever_compute_it_aims_at(schedule: Schedule) -> None:
    few, many = factors(40, schedule), factors(1000, schedule)
    assert few[:10] == pytest.approx([step / 10 for step in range(1, 11)])
    shared = steps_before_decay(schedule, total_steps=40)
    assert shared >= 32
    assert few[:shared] == many[:shared]


def test_warm_up_stable_decay_falls_over_its_last_fifth() -> None:
    found = factors(40, Schedule.WARMUP_STABLE_DECAY)
    assert found[9:33] == [1.0] * 24
    assert found[34] == pytest.approx(1 - math.sqrt(2 / 8))


def test_a_constant_rate_stays() -> None:
    assert factors(40, Schedule.CONSTANT)[9:] == [1.0] * 31


@pytest.mark.parametrize("schedule", [Schedule.COSINE, Schedule.LINEAR])
def test_a_rate_that_falls_at_once_shares_no_step_with_another_target(schedule: Schedule) -> None:
    assert steps_before_decay(schedule, total_steps=40) == 0


@pytest.mark.parametrize("schedule", Schedule)
@pytest.mark.parametrize("total", [1, 2, 3, 4])
def test_schedules_of_a_few_steps(schedule: Schedule, total: int) -> None:
    found = factors(total, schedule)
    assert found[0] == (0.1 if schedule in STAYING else 1)
    assert all(0 < factor <= 1 for factor in found)


def test_every_group_keeps_its_own_peak() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    optimizer = build_optimizer(
        Optimizer.SGD, model, learning_rate=1.0, weight_decay=0, layer_decay=0.5
    )
    set_learning_rate(optimizer, schedule=Schedule.COSINE, step=22, total_steps=40)
    assert sorted({group["lr"] for group in optimizer.param_groups}) == pytest.approx([0.25, 0.5])


def test_our_warm_up_is_the_schedule_free_librarys_own() -> None:
    def trained(*, warmup_steps: int) -> torch.Tensor:
        torch.manual_seed(0)
        layer = nn.Linear(3, 3)
        optimizer = AdamWScheduleFree(
            layer.parameters(), lr=0.1, betas=(0.9, 0.999), warmup_steps=warmup_steps
        )
        optimizer.train()
        for group in optimizer.param_groups:
            group["peak_lr"] = 0.1
        for step in range(40):
            optimizer.zero_grad()
            layer(torch.randn(4, 3)).square().mean().backward()
            if not warmup_steps:
                set_learning_rate(optimizer, schedule=Schedule.CONSTANT, step=step, total_steps=40)
            optimizer.step()
        return layer.weight.detach()

    torch.testing.assert_close(trained(warmup_steps=0), trained(warmup_steps=10))
