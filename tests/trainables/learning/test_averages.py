"""The running average by its formula, and the schedule-free one as the library makes it."""

import math
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from schedulefree import AdamWScheduleFree
from torch import Tensor, nn

from search_spaces.recipe import Optimizer, Schedule
from tests.trainables.recipes import LEVELS, make_recipe, make_trial, run, rung_uri
from trainables.batches.features import FeatureBatches
from trainables.checkpoints import load_checkpoint
from trainables.images.store import ImageStore
from trainables.learning.averages import SETTLING_IMAGES, RunningAverage, ScheduleFreeAverage
from trainables.learning.batch_norm import reestimate_batch_norm, trained_batch_norms
from trainables.learning.freezing import freeze_below, train_mode
from trainables.learning.optimizers import build_optimizer
from trainables.learning.schedules import set_learning_rate

FREE: dict[str, Any] = {"optimizer": Optimizer.SCHEDULE_FREE_ADAMW, "schedule": Schedule.CONSTANT}


def test_a_running_average_is_the_weighted_sum_of_its_formula() -> None:
    model = nn.BatchNorm1d(1)
    average = RunningAverage(model)
    history = [3.0, -1.0, 2.0, 5.0]
    for step, value in enumerate(history, start=1):
        with torch.no_grad():
            model.weight.fill_(value)
            model.get_buffer("running_mean").fill_(10 * value)
            model.get_buffer("num_batches_tracked").fill_(step)
        average.update(step=step)
    # weights of Shamir & Zhang unrolled: w_t · prod of (1 - share) after t, share = 9 / (t + 8)
    shares = [9 / (t + 8) for t in range(1, 5)]
    expected = sum(
        value * share * math.prod(1 - later for later in shares[t + 1 :])
        for t, (value, share) in enumerate(zip(history, shares, strict=True))
    )
    assert average.model.get_parameter("weight").item() == pytest.approx(expected)
    assert average.model.get_buffer("running_mean").item() == pytest.approx(10 * expected)
    assert average.model.get_buffer("num_batches_tracked").item() == 4


def test_the_first_step_replaces_what_a_running_average_began_with() -> None:
    model = nn.Linear(2, 2)
    average = RunningAverage(model)
    with torch.no_grad():
        model.weight.fill_(7.0)
    average.update(step=1)
    assert torch.equal(average.model.get_parameter("weight"), model.weight)
    assert average.model.get_parameter("weight").data_ptr() != model.weight.data_ptr()


def test_a_running_average_neither_trains_nor_follows_what_is_frozen() -> None:
    model = nn.Linear(2, 2)
    model.weight.requires_grad = False
    average = RunningAverage(model)
    before = model.weight.clone()
    with torch.no_grad():
        model.weight.fill_(7.0)
        model.bias.fill_(3.0)
    average.update(step=1)
    assert torch.equal(average.model.get_parameter("weight"), before)
    assert torch.equal(average.model.get_parameter("bias"), model.bias)
    assert not any(p.requires_grad for p in average.model.parameters())
    assert not average.model.training


def images(seed: int) -> Tensor:
    return torch.randn(6, 3, 32, 32, generator=torch.Generator().manual_seed(seed))


def trained(
    *, trainable_depth: float = 1.0, steps: int = 5
) -> tuple[nn.Module, torch.optim.Optimizer, ScheduleFreeAverage]:
    torch.manual_seed(0)
    model = timm.create_model("test_resnet", num_classes=4)
    freeze_below(model, trainable_depth=trainable_depth)
    train_mode(model)
    optimizer = build_optimizer(
        Optimizer.SCHEDULE_FREE_ADAMW, model, learning_rate=0.01, weight_decay=0.1, layer_decay=0.9
    )
    average = ScheduleFreeAverage(model, optimizer)
    for step in range(steps):
        set_learning_rate(optimizer, schedule=Schedule.CONSTANT, step=step, total_steps=20)
        optimizer.zero_grad()
        model(images(step)).square().mean().backward()
        optimizer.step()
        average.update(step=step + 1)
    return model, optimizer, average


def test_the_average_is_what_the_librarys_eval_mode_gives() -> None:
    model, optimizer, average = trained()
    before = deepcopy(model.state_dict())
    average.settle([images(9)])
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), "measuring leaves training alone"
    assert isinstance(optimizer, AdamWScheduleFree)
    optimizer.eval()
    for (name, mine), theirs in zip(
        average.model.named_parameters(), model.parameters(), strict=True
    ):
        torch.testing.assert_close(mine, theirs, msg=name)
    norms = trained_batch_norms(model)
    reestimate_batch_norm(model, [images(9)], only=norms)
    for statistic, expected in zip(average.model.buffers(), model.buffers(), strict=True):
        torch.testing.assert_close(statistic, expected)


def test_statistics_are_those_of_the_average_and_not_of_the_points_trained_at() -> None:
    model, _, average = trained()
    average.settle([images(9)])
    name = trained_batch_norms(model)[-1]
    mine = average.model.get_buffer(f"{name}.running_mean")
    assert not torch.allclose(mine, model.get_buffer(f"{name}.running_mean"), rtol=1e-2)
    again = mine.clone()
    average.settle([images(9)])
    assert torch.equal(mine, again), "settling twice is settling once"


def test_frozen_norms_keep_their_statistics_and_cost_no_settling() -> None:
    model, _, average = trained(trainable_depth=0.0)
    assert average.settling_images == 0
    average.settle([])
    for mine, theirs in zip(average.model.buffers(), model.buffers(), strict=True):
        assert torch.equal(mine, theirs)
    _, _, partly = trained(trainable_depth=0.4, steps=1)
    assert partly.settling_images == SETTLING_IMAGES


def test_settling_is_charged_once_and_billed_at_every_rung(digits: ImageStore) -> None:
    recipe = make_recipe(**FREE)
    plain, free = make_trial(digits, make_recipe()), make_trial(digits, recipe)
    settling = min(SETTLING_IMAGES, len(digits.splits["train"])) * free.prices.inference_flops
    step = free.batches.step_flops
    for stop in free.stops:
        assert stop.train_flops == pytest.approx(settling + stop.steps * step)
        assert stop.train_flops <= LEVELS[stop.rung] < stop.train_flops + step
    assert free.stops[-1].steps < plain.stops[-1].steps
    curve = run(free)
    first, *rest = curve
    assert first.executed_flops == pytest.approx(first.train_flops)
    for before, after in zip(curve, rest, strict=False):
        paid = after.train_flops - before.train_flops + settling
        assert after.executed_flops == pytest.approx(paid)
    assert free.unbilled_flops == 0


def test_a_head_on_features_needs_no_settling(digits: ImageStore) -> None:
    trial = make_trial(digits, make_recipe(trainable_depth=0.0, learning_rate=0.01, **FREE))
    assert isinstance(trial.batches, FeatureBatches)
    assert trial.prices.settling_flops == 0
    trial.advance()
    assert trial.measurement is not None
    assert trial.measurement.executed_flops <= trial.measurement.train_flops


def test_it_learns_and_its_checkpoint_holds_the_average(digits: ImageStore, tmp_path: Path) -> None:
    levels = (4e8, 4e9)
    recipe = make_recipe(learning_rate=0.01, target_flops=levels[-1], **FREE)
    trial = make_trial(digits, recipe, levels=levels)
    curve = run(trial, tmp_path)
    assert curve[-1].val_error < 0.5 < 0.75  # four classes: chance is 0.75
    assert curve[-1].val_loss < curve[0].val_loss
    tensors, _ = load_checkpoint(rung_uri(tmp_path, curve[-1].rung), ("measured", "optimizer"))
    measured = trial.average.state_dict()
    assert all(torch.equal(value, measured[name]) for name, value in tensors["measured"].items())
    assert {key.partition(":")[0] for key in tensors["optimizer"]} == {"z", "exp_avg_sq"}


def test_a_parameter_that_never_had_a_gradient_stays_as_it_is() -> None:
    model = nn.Sequential(nn.Linear(2, 2))
    model.register_parameter("unused", nn.Parameter(torch.ones(3)))
    optimizer = build_optimizer(
        Optimizer.SCHEDULE_FREE_ADAMW, model, learning_rate=0.1, weight_decay=0.1, layer_decay=1.0
    )
    average = ScheduleFreeAverage(model, optimizer)
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    average.settle([])
    assert torch.equal(average.model.get_parameter("unused"), torch.ones(3))
