"""Powerpropagation begins where the backbone is and ends as sparse as asked."""

from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import nn

from search_spaces.recipe import Optimizer
from tests.known import known
from tests.trainables.mechanisms.sparse_models import WEIGHTS, zeros
from tests.trainables.methods.example_runs import RunOf
from tests.trainables.methods.examples.powerpropagation import AT_A_RUNG, EXAMPLE
from tests.trainables.methods.method_examples import pretrained
from tests.trainables.recipes import SMALL, run
from trainables.backbones import build as backbones
from trainables.backbones.layers import backbone_weights
from trainables.errors import InputError
from trainables.images.store import ImageStore
from trainables.measurement import Outcome
from trainables.mechanisms.reparametrization import merge
from trainables.methods.powerpropagation import Power, Powerpropagation
from trainables.rungs import rung_levels

EVERY_STEP = rung_levels(min_flops=2e8, max_flops=8e8, per_decade=60)
ASKED = round(0.8 * WEIGHTS)


def backbone() -> nn.Module:
    model = backbones.build(SMALL, num_classes=7)
    model.load_state_dict(pretrained())
    return model


@pytest.mark.parametrize("alpha", [1.25, 2.0, 5.0])
def test_the_effective_weights_at_step_0_are_the_backbones(alpha: float) -> None:
    model = backbone()
    Powerpropagation(alpha=alpha, sparsity=0.5, prune_at=0.5).attach(model)
    merge(model)
    for name, weight in backbone_weights(model).items():
        torch.testing.assert_close(weight.detach(), pretrained()[name], rtol=1e-6, atol=0)


def test_alpha_1_trains_the_weights_themselves() -> None:
    model = backbone()
    Powerpropagation(alpha=1.0, sparsity=0.5, prune_at=0.5).attach(model)
    assert model.state_dict().keys() == pretrained().keys()


def test_a_weight_of_zero_has_a_gradient_of_zero() -> None:
    theta = torch.tensor([-0.25, 0.0, 0.25], requires_grad=True)
    Power(1.5)(theta).sum().backward()
    assert theta.grad is not None
    torch.testing.assert_close(theta.grad, torch.tensor([0.75, 0.0, 0.75]))


@pytest.mark.parametrize("alpha", [1.0, 3.0])
@pytest.mark.parametrize("prune_at", [0.0, AT_A_RUNG, 1.0])
def test_every_rung_is_exactly_as_sparse_as_asked(
    digits: ImageStore, alpha: float, prune_at: float
) -> None:
    trial = EXAMPLE.but(settings={"alpha": alpha, "prune_at": prune_at}).trial(digits)
    while trial.outcome is Outcome.RUNNING:
        trial.advance()
        measured = trial.measurement
        assert measured is not None
        assert zeros(trial.measured_model) == ASKED
        assert measured.updated_params == measured.params - ASKED
        assert known(measured.sparse_inference_flops) < 0.5 * measured.inference_flops


@pytest.mark.parametrize("optimizer", Optimizer)
def test_what_is_pruned_stays_pruned_after_every_step(
    digits: ImageStore, optimizer: Optimizer
) -> None:
    example = EXAMPLE.but(optimizer=optimizer, weight_decay=0.05, clip_norm=1.0, levels=EVERY_STEP)
    trial = example.trial(digits)
    steps, model, pruned = [stop.steps for stop in trial.stops], trial.model, []
    assert steps == list(range(steps[0], steps[-1] + 1))
    while trial.outcome is Outcome.RUNNING:
        trial.advance()
        thetas = [p for name, p in model.named_parameters() if name.endswith("original")]
        pruned.append(torch.cat([theta.detach().flatten() == 0 for theta in thetas]))
        assert zeros(trial.measured_model) == ASKED
    before = sum(taken <= round(0.5 * steps[-1]) for taken in steps)
    assert 1 < before < len(steps) - 1
    assert not any(where.any() for where in pruned[:before])
    assert int(pruned[-1].sum()) == ASKED
    assert all(torch.equal(where, pruned[-1]) for where in pruned[before:])


def test_the_finished_model_is_the_merged_average_cut_by_its_own_magnitudes(
    digits: ImageStore,
) -> None:
    trial = EXAMPLE.but(settings={"prune_at": 1.0}).trial(digits)
    trial.advance()
    average = trial.average
    before = {name: value.clone() for name, value in average.state_dict().items()}
    effective = {n: m.weight for n, m in average.named_modules() if isinstance(m, nn.Conv2d)}
    plain = dict(trial.measured_model.named_modules())
    kept, gone = [], []
    for name, weight in effective.items():
        mask = plain[name].weight != 0
        assert torch.equal(plain[name].weight[mask], weight[mask])
        kept.append(weight[mask].abs())
        gone.append(weight[~mask].abs())
    assert torch.cat(gone).max() <= torch.cat(kept).min()
    assert all(torch.equal(v, before[n]) for n, v in average.state_dict().items())


def test_a_schedule_free_average_is_cut_before_its_norms_are_made(digits: ImageStore) -> None:
    trial = EXAMPLE.but(optimizer=Optimizer.SCHEDULE_FREE_ADAMW).trial(digits)
    trial.advance()
    average = deepcopy(trial.average)
    merge(average)
    assert zeros(average) == ASKED
    again = trial.measured_model.state_dict()
    assert all(torch.equal(value, again[name]) for name, value in average.state_dict().items())


def test_it_costs_what_full_finetuning_costs(digits: ImageStore, run_of: RunOf) -> None:
    full = run(EXAMPLE.but(settings={"alpha": 1.0, "sparsity": 0.0}).trial(digits))
    powers = run_of("powerpropagation", "sgd").curve
    assert [m.train_flops for m in powers] == [m.train_flops for m in full]
    assert [m.sparse_train_flops for m in powers[:2]] == [m.train_flops for m in full[:2]]
    assert known(powers[-1].sparse_train_flops) < 0.8 * full[-1].train_flops


def test_the_exported_backbone_is_as_sparse_as_asked(run_of: RunOf) -> None:
    assert zeros(run_of("powerpropagation", "sgd").exported.module) == ASKED


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"alpha": 0.5}, "alpha=0.5 must be greater than or equal to 1"),
        ({"alpha": 6.0}, "alpha=6.0 must be less than or equal to 5"),
        ({"sparsity": 1.0}, "sparsity=1.0 must be less than 1"),
        ({"sparsity": 0.9999999}, "each keeps at least one"),
        ({"prune_at": 1.5}, "prune_at=1.5 must be less than"),
    ],
)
def test_settings_out_of_range_are_refused(settings: dict[str, Any], complaint: str) -> None:
    with pytest.raises(InputError, match=complaint):
        EXAMPLE.but(settings=settings).check()
