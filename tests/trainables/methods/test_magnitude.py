"""Magnitude pruning: as sparse as asked, at every step and in every model that is measured."""

from typing import Any

import pytest
import torch

from search_spaces.draws import check_space
from search_spaces.methods.magnitude import magnitude as space
from tests.known import known
from tests.trainables.contexts import make_context
from tests.trainables.mechanisms.sparse_models import (
    HEAD,
    PARAMS,
    WEIGHTS,
    steps,
    zeros,
    zeros_by_weight,
)
from tests.trainables.methods.example_runs import RunOf
from tests.trainables.methods.examples.magnitude import GRADUAL, HEAD_LEVELS, ONE_SHOT
from tests.trainables.methods.method_examples import OPTIMIZERS, PROBLEM, MethodExample, pretrained
from tests.trainables.recipes import LEVELS, SMALL, run
from trainables.backbones import build as backbones
from trainables.backbones.layers import backbone_weights
from trainables.costs.flops import count_flops
from trainables.errors import InputError
from trainables.images.store import ImageStore
from trainables.methods import magnitude

KINDS = {"one_shot": ONE_SHOT, "gradual": GRADUAL}
BOTH = pytest.mark.parametrize("kind", KINDS)
ASKED = round(0.9 * WEIGHTS)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("scope", ["layer", "global"])
def test_one_shot_is_as_sparse_as_asked_after_every_step(
    digits: ImageStore, scope: str, optimizer: str
) -> None:
    trial = ONE_SHOT.but(settings={"scope": scope}, **OPTIMIZERS[optimizer]).trial(digits)
    counts = [zeros(model) for _, model in steps(trial)]
    assert len(counts) > 5
    assert set(counts) == {ASKED}


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@BOTH
def test_every_rung_and_the_export_are_as_sparse_as_asked(
    run_of: RunOf, kind: str, optimizer: str
) -> None:
    whole = run_of("magnitude", f"{kind}_{optimizer}")
    for measured, model in whole.measured_models():
        assert zeros(model) == ASKED
        assert known(measured.nonzero_params) <= PARAMS - ASKED
        assert measured.updated_params == PARAMS - ASKED, "values held at zero are not updated"
    assert zeros(whole.exported.module) == ASKED


@pytest.mark.parametrize("scope", ["layer", "global"])
def test_gradual_follows_the_cubic_schedule(digits: ImageStore, scope: str) -> None:
    example = GRADUAL.but(settings={"scope": scope, "ramp": 0.5}, levels=(1.3e9,))
    trial = example.trial(digits)
    total = trial.stops[-1].steps
    counts = []
    for step, model in steps(trial):
        counts.append(zeros(model))
        passed = min(1.0, (step + 1) / (0.5 * total))
        low, high = (0.9 * (1 - (1 - t) ** 3) for t in (max(0.0, passed - 0.05), passed))
        assert low * WEIGHTS - 20 <= counts[-1] <= high * WEIGHTS + 20
    assert counts == sorted(counts), "what has gone does not come back"
    assert set(counts[total // 2 :]) == {ASKED}
    assert len(set(counts)) > 5


def test_a_layers_smallest_weights_go() -> None:
    weights = pretrained()
    model = backbones.build(SMALL, num_classes=4)
    model.load_state_dict(
        {**model.state_dict(), **{n: weights[n] for n in backbone_weights(model)}}
    )
    magnitude.prepare(model, make_context(model, ONE_SHOT.settings))
    for name, left in backbone_weights(model).items():
        gone = weights[name][left == 0]
        assert abs(len(gone) - 0.9 * left.numel()) <= 1
        assert gone.abs().max() < weights[name][left != 0].abs().min()


def test_layers_differ_in_sparsity_where_they_compete() -> None:
    for scope, different in (("layer", False), ("global", True)):
        model = backbones.build(SMALL, num_classes=4)
        magnitude.prepare(model, make_context(model, {**ONE_SHOT.settings, "scope": scope}))
        sizes = {name: w.numel() for name, w in backbone_weights(model).items()}
        shares = [zeros_by_weight(model)[name] / sizes[name] for name in sizes]
        assert (max(shares) - min(shares) > 0.1) is different


def test_the_linear_regime_learns_from_features_of_the_sparse_backbone(digits: ImageStore) -> None:
    trial = ONE_SHOT.but(trainable_depth=0.0, levels=HEAD_LEVELS).trial(digits)
    run(trial)
    assert zeros(trial.measured_model) == ASKED
    assert trial.measurement is not None
    assert trial.measurement.updated_params == HEAD
    assert known(trial.measurement.sparse_train_flops) < 0.2 * trial.measurement.train_flops


def test_the_repair_costs_its_forward_passes_and_nothing_else_does() -> None:
    model = backbones.build(SMALL, num_classes=4)
    before = model.get_buffer("conv1.1.running_mean").clone()
    assert magnitude.prepare(model, make_context(model, ONE_SHOT.settings)).flops == 0
    assert torch.equal(model.get_buffer("conv1.1.running_mean"), before)
    repaired = {**ONE_SHOT.settings, "batch_norm_repair": True}
    prepared = magnitude.prepare(model, make_context(model, repaired, images=40))
    assert prepared.flops == 40 * count_flops(model, resolution=32).forward_flops
    assert not torch.equal(model.get_buffer("conv1.1.running_mean"), before)
    assert magnitude.prepare(model, make_context(model, GRADUAL.settings)).flops == 0


def test_a_step_held_sparse_could_skip_its_zeros(digits: ImageStore) -> None:
    dense, sparse, gradual = (
        run(example.but(settings={"scope": "layer", **changes}, levels=LEVELS).trial(digits))[-1]
        for example, changes in ((ONE_SHOT, {"sparsity": 0.0}), (ONE_SHOT, {}), (GRADUAL, {}))
    )
    assert dense.train_flops == sparse.train_flops == gradual.train_flops
    assert dense.sparse_train_flops == dense.train_flops
    assert known(sparse.sparse_train_flops) < 0.2 * dense.train_flops
    gradually = known(gradual.sparse_train_flops)
    assert known(sparse.sparse_train_flops) < gradually < 0.8 * dense.train_flops
    assert sparse.sparse_inference_flops == gradual.sparse_inference_flops
    assert known(sparse.sparse_inference_flops) < 0.2 * sparse.inference_flops


@pytest.mark.parametrize(
    ("example", "settings", "complaint"),
    [
        (ONE_SHOT, {"sparsity": 1.0}, "sparsity=1.0 must be less than 1"),
        (ONE_SHOT, {"sparsity": -0.1}, "sparsity=-0.1 must be greater than or equal to 0"),
        (ONE_SHOT, {"sparsity": 0.99999}, "leaves 4 of 370608 values to 15 layers"),
        (ONE_SHOT, {"scope": "row"}, "scope='row' must be 'layer' or 'global'"),
        (ONE_SHOT, {"sparsification": "gradual"}, "needs a ramp"),
        (ONE_SHOT, {"ramp": 0.5}, "ramp=0.5 must be left out with one_shot"),
        (GRADUAL, {"ramp": 0.0}, "ramp=0.0 must be greater than 0"),
        (GRADUAL, {"batch_norm_repair": True}, "batch_norm_repair=True must be false"),
    ],
)
def test_settings_that_make_no_sense_are_refused(
    example: MethodExample, settings: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(InputError, match=complaint):
        example.but(settings=settings).check()


def test_one_shot_pruning_of_frozen_layers_passes() -> None:
    ONE_SHOT.but(trainable_depth=0.0).check()


def test_its_space_draws_both_kinds() -> None:
    drawn = {
        recipe.settings["sparsification"] for recipe in check_space(space, {}, PROBLEM).recipes
    }
    assert drawn == set(KINDS)
