"""STR learns its thresholds, and what it ends with is reported."""

from math import log
from typing import Any

import pytest
import torch

from search_spaces.recipe import Optimizer, Schedule
from tests.trainables.mechanisms.sparse_models import zeros
from tests.trainables.methods.example_runs import RunOf
from tests.trainables.methods.examples.str import EXAMPLE
from tests.trainables.methods.method_examples import pretrained
from tests.trainables.recipes import SMALL, run
from trainables.backbones import build as backbones
from trainables.backbones.layers import backbone_weights
from trainables.errors import InputError
from trainables.finetune import Finetuning
from trainables.images.store import ImageStore
from trainables.measurement import Outcome
from trainables.mechanisms.reparametrization import merge, parametrizations
from trainables.methods.str import COUNT_PERIOD, SoftThreshold


def thresholds(trial: Finetuning) -> dict[str, float]:
    parts = parametrizations(trial.model).items()
    return {
        n: float(part.threshold.detach()) for n, part in parts if isinstance(part, SoftThreshold)
    }


def mean_sizes() -> dict[str, float]:
    weights = pretrained()
    names = backbone_weights(backbones.build(SMALL, num_classes=7))
    return {name: float(weights[name].abs().mean()) for name in names}


def test_values_shrink_by_the_threshold_and_small_ones_to_zero() -> None:
    v = torch.tensor([-3.0, -1.0, 0.5, 1.5])  # of mean size 1.5
    part = SoftThreshold(v, level=log(2 / 3))
    torch.testing.assert_close(part(v), torch.tensor([-2.0, 0.0, 0.0, 0.5]))


def test_a_threshold_falls_where_larger_weights_would_lower_the_loss() -> None:
    v = torch.tensor([-3.0, -1.0, 0.5, 1.5])
    part = SoftThreshold(v, level=0.0)
    (-part(v).abs().sum()).backward()
    assert part.s.grad is not None
    assert float(part.s.grad) > 0
    torch.testing.assert_close(part.threshold.detach(), torch.tensor([1.5]))


@pytest.mark.parametrize("optimizer", Optimizer)
def test_thresholds_learn_and_the_sparsity_grows(digits: ImageStore, optimizer: Optimizer) -> None:
    trial = EXAMPLE.but(optimizer=optimizer, schedule=Schedule.CONSTANT).trial(digits)
    first, found = thresholds(trial), []
    assert first == pytest.approx({name: 0.3 * size for name, size in mean_sizes().items()})
    while trial.outcome is Outcome.RUNNING:
        trial.advance()
        found.append(zeros(trial.measured_model))
    assert found == sorted(set(found))
    last = thresholds(trial)
    assert all(last[name] > first[name] for name in first)
    learned = [p.item() for name, p in trial.model.named_parameters() if name.endswith(".s")]
    assert 0.0 not in learned
    assert len(set(learned)) == len(learned) == len(first)  # each layer its own


def test_without_learning_the_threshold_goes_where_it_is_told(digits: ImageStore) -> None:
    trial = EXAMPLE.but(learning_rate=1e-9).trial(digits)
    run(trial)
    expected = {name: 2.0 * size for name, size in mean_sizes().items()}
    assert thresholds(trial) == pytest.approx(expected, rel=1e-4)


def test_the_sparsity_is_reported(digits: ImageStore) -> None:
    trial = EXAMPLE.trial(digits)
    measured = run(trial)[-1]
    gone = zeros(trial.measured_model)
    assert gone > 0.3 * measured.params
    assert measured.nonzero_params == sum(
        int((p != 0).sum()) for p in trial.measured_model.parameters()
    )
    assert measured.nonzero_params <= measured.params - gone
    assert measured.sparse_inference_flops is not None
    assert measured.sparse_inference_flops < 0.8 * measured.inference_flops
    assert measured.sparse_train_flops is not None
    assert measured.sparse_train_flops < measured.train_flops


def test_updated_params_leave_out_the_zeros_of_the_trained_model(digits: ImageStore) -> None:
    trial = EXAMPLE.trial(digits)
    measured = run(trial)[-1]
    model = trial.model
    merge(model)
    assert measured.updated_params == measured.params - zeros(model)


def test_it_costs_what_full_finetuning_costs(digits: ImageStore, run_of: RunOf) -> None:
    whole = run_of("str", "sgd")
    off = whole.example.but(settings={"initial_threshold": 0.0, "final_threshold": 0.0})
    full, ours = run(off.trial(digits)), whole.curve
    assert [m.train_flops for m in ours] == [m.train_flops for m in full]


def test_its_example_is_saved_between_two_counts_of_zeros(run_of: RunOf) -> None:
    steps = run_of("str", "sgd").steps
    assert steps[-2] < COUNT_PERIOD < steps[-1]


def test_the_exported_backbone_has_the_zeros_that_were_found(run_of: RunOf) -> None:
    model = run_of("str", "sgd").exported.module
    assert zeros(model) > 0.3 * sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize(
    ("initial", "final", "complaint"),
    [
        (-0.1, 1.0, "initial_threshold=-0.1 must be greater than or equal to 0"),
        (0.1, 5.0, "final_threshold=5.0 must be less than or equal to 4"),
        (0.0, 1.0, "initial_threshold=0 and final_threshold=1 must both be 0"),
        (2.0, 1.0, "initial_threshold=2 and final_threshold=1 must both be 0"),
    ],
)
def test_settings_out_of_range_are_refused(initial: float, final: float, complaint: str) -> None:
    settings: dict[str, Any] = {"initial_threshold": initial, "final_threshold": final}
    with pytest.raises(InputError, match=complaint):
        EXAMPLE.but(settings=settings).check()
