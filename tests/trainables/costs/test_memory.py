"""Predicted memory against what the CPU's allocator gave out, and the shares that follow."""

import pytest
import timm
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.profiler import ProfilerActivity, profile

from search_spaces.recipe import Optimizer
from trainables.costs.memory import (
    CUDA_CONTEXT_BYTES,
    MOST_TRIALS,
    PeakMemory,
    TrialMemory,
    fit_peak,
    gpu_share,
    trace_memory,
)
from trainables.errors import InputError
from trainables.learning.averages import RunningAverage
from trainables.learning.freezing import freeze_below, train_mode
from trainables.learning.optimizers import build_optimizer

GIGABYTE = 1 << 30


def prepared(name: str, *, trainable_depth: float = 1.0) -> nn.Module:
    model: nn.Module = timm.create_model(name, num_classes=10)
    freeze_below(model, trainable_depth=trainable_depth)
    train_mode(model)
    return model


def allocated_peak(name: str, *, resolution: int, batch_size: int, trainable_depth: float) -> int:
    """Bytes that PyTorch's allocator had given out at most, from the model on for two steps."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        model = prepared(name, trainable_depth=trainable_depth)
        average = RunningAverage(model)
        optimizer = build_optimizer(
            Optimizer.SGD, model, learning_rate=0.01, weight_decay=0, layer_decay=1
        )
        images = torch.zeros(batch_size, 3, resolution, resolution)
        labels = torch.zeros(batch_size, dtype=torch.int64)
        for step in (1, 2):
            loss = F.cross_entropy(model(images), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            average.update(step=step)
    events = [e for e in profiled.profiler.kineto_results.events() if e.name() == "[memory]"]
    live = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        live += event.nbytes()
        peak = max(peak, live)
    return peak


@pytest.mark.parametrize(
    ("name", "trainable_depth", "margin"),
    [
        ("resnet18", 1.0, 0.03),
        ("mobilenetv2_100", 1.0, 0.03),
        ("convnext_atto", 1.0, 0.05),
        # without saved activations the largest layer's temporaries are the peak, and the
        # kernels' scratch space, which is not known, is a good part of them
        ("mobilenetv2_100", 0.25, 0.2),
    ],
)
def test_the_traced_peak_is_what_the_allocator_gives_out(
    name: str, trainable_depth: float, margin: float
) -> None:
    batch_size, resolution = 24, 64
    traced = trace_memory(prepared(name, trainable_depth=trainable_depth), resolution=resolution)
    measured = allocated_peak(
        name, resolution=resolution, batch_size=batch_size, trainable_depth=trainable_depth
    )
    assert traced.training.at(batch_size) == pytest.approx(measured, rel=margin)


def test_a_linear_layer_holds_what_the_hand_computes() -> None:
    layer = nn.Linear(300, 100, bias=False)
    memory = trace_memory(nn.Sequential(nn.Flatten(), layer), resolution=10)
    weight, image, logits = 4 * 300 * 100, 4 * 300, 4 * 100
    # the weight, its average, its gradient and its momentum; the new gradient before it is added
    assert memory.training.fixed_bytes == pytest.approx(5 * weight, rel=0.01)
    assert memory.training.image_bytes == pytest.approx(image + 3 * logits, abs=2 * logits)
    assert memory.evaluation.fixed_bytes == pytest.approx(4 * weight)
    assert memory.evaluation.image_bytes == image + logits


def test_more_optimizer_state_takes_more_and_frozen_layers_less() -> None:
    whole, head = prepared("resnet18"), prepared("resnet18", trainable_depth=0.0)
    sgd_bytes = trace_memory(whole, resolution=32).training.at(8)
    adam_bytes = trace_memory(whole, resolution=32, optimizer_copies=2).training.at(8)
    weights = sum(p.nbytes for p in whole.parameters())
    assert adam_bytes - sgd_bytes == pytest.approx(weights, abs=8)
    assert trace_memory(head, resolution=32).training.at(8) < 0.6 * sgd_bytes


def test_tracing_leaves_the_model_as_it_was() -> None:
    model = prepared("test_resnet", trainable_depth=0.5)
    modes = [module.training for module in model.modules()]
    trace_memory(model, resolution=32)
    assert modes == [module.training for module in model.modules()]
    assert all(p.grad is None and p.device.type == "cpu" for p in model.parameters())


def test_a_trial_needs_the_larger_of_training_and_evaluation() -> None:
    memory = TrialMemory(
        training=PeakMemory(fixed_bytes=100, image_bytes=10),
        evaluation=PeakMemory(fixed_bytes=60, image_bytes=1),
    )
    assert memory.peak_bytes(batch_size=8, evaluation_batch=64) == 180
    assert memory.peak_bytes(batch_size=1, evaluation_batch=256) == 316


@given(fixed=st.integers(0, 10**12), image=st.integers(0, 10**9), batch=st.integers(1, 4096))
def test_two_probes_tell_any_batch(fixed: int, image: int, batch: int) -> None:
    peak = fit_peak(lambda images: fixed + image * images)
    assert peak.at(batch) == pytest.approx(fixed + image * batch, rel=1e-9, abs=1)


@given(peak=st.integers(0, 100 * GIGABYTE), device=st.integers(1, 192 * GIGABYTE))
def test_as_many_trials_as_the_share_says_fit_and_not_twice_as_many(peak: int, device: int) -> None:
    share = gpu_share(peak, device_bytes=device, margin=0.1)
    trials = round(1 / share)
    assert trials * share == 1
    need = peak + CUDA_CONTEXT_BYTES
    assert trials == 1 or trials * need <= 0.9 * device
    assert trials == MOST_TRIALS or 2 * trials * need > 0.9 * device


def test_a_trial_too_large_for_the_gpu_gets_it_whole() -> None:
    assert gpu_share(100 * GIGABYTE, device_bytes=16 * GIGABYTE) == 1
    assert gpu_share(4 * GIGABYTE, device_bytes=16 * GIGABYTE) == 0.5


@pytest.mark.parametrize(
    ("peak_bytes", "device_bytes", "margin", "message"),
    [
        (-1, 1, 0.1, "peak_bytes=-1 and device_bytes=1 must be"),
        (1, 0, 0.1, "device_bytes=0 must be"),
        (1, 1, 1.0, "margin=1.0 must lie in"),
    ],
)
def test_shares_of_nonsense_are_refused(
    peak_bytes: int, device_bytes: int, margin: float, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        gpu_share(peak_bytes, device_bytes=device_bytes, margin=margin)


def test_a_model_that_cannot_be_traced_is_refused_in_a_sentence() -> None:
    with pytest.raises(InputError, match=r"The memory of Linear at 4 pixels cannot be counted"):
        trace_memory(nn.Linear(5, 2), resolution=4)


def test_a_traced_peak_is_calibrated_part_by_part() -> None:
    def peak(fixed_bytes: float, image_bytes: float) -> PeakMemory:
        return PeakMemory(fixed_bytes=fixed_bytes, image_bytes=image_bytes)

    traced = TrialMemory(training=peak(100, 10), evaluation=peak(80, 4))
    measured = TrialMemory(training=peak(150, 5), evaluation=peak(80, 2))
    smaller = TrialMemory(training=peak(60, 2), evaluation=peak(40, 1))
    assert traced.calibrated(traced=traced, measured=measured) == measured
    found = smaller.calibrated(traced=traced, measured=measured)
    assert found.training == peak(90, 1)
    assert found.evaluation == peak(40, 0.5)
