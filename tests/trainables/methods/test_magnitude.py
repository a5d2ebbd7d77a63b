"""Magnitude pruning: as sparse as asked, at every step and in every model that is measured."""

from pathlib import Path
from typing import Any

import pytest
import torch

from search_spaces.recipe import Recipe
from tests.trainables.contexts import make_context
from tests.trainables.mechanisms.sparse_models import (
    HEAD,
    OPTIMIZERS,
    PARAMS,
    WEIGHTS,
    drawn_recipes,
    steps,
    zeros,
    zeros_by_weight,
)
from tests.trainables.methods.method_contract import (
    assert_exports,
    assert_plain_finetuning,
    assert_resumes,
    check,
    pretrained,
)
from tests.trainables.recipes import LEVELS, SMALL, make_recipe, make_trial, run
from trainables.backbones import build as backbones
from trainables.backbones.layers import backbone_weights
from trainables.backbones.source import BackboneSource
from trainables.costs.flops import count_flops
from trainables.errors import InputError
from trainables.images.store import ImageStore
from trainables.methods import magnitude
from trainables.rungs import rung_levels

ONE_SHOT: dict[str, Any] = {"sparsity": 0.9}
GRADUAL: dict[str, Any] = {"sparsity": 0.9, "sparsification": "gradual", "ramp": 0.75}
BOTH = [ONE_SHOT, GRADUAL]
ASKED = round(0.9 * WEIGHTS)
HEAD_LEVELS = rung_levels(min_flops=2.38e8, max_flops=2.8e8, per_decade=120)
REPAIRED_LEVELS = rung_levels(min_flops=4.72e8, max_flops=5.2e8, per_decade=200)


def recipe_of(settings: dict[str, Any], **changes: Any) -> Recipe:
    return make_recipe(method="magnitude", settings=settings, **changes)


def name_of(settings: dict[str, Any]) -> str:
    return str(settings.get("sparsification", "one_shot"))


@pytest.mark.parametrize("changes", OPTIMIZERS, ids=lambda changes: changes["optimizer"])
@pytest.mark.parametrize("scope", ["layer", "global"])
def test_one_shot_is_as_sparse_as_asked_after_every_step(
    digits: ImageStore, scope: str, changes: dict[str, Any]
) -> None:
    recipe = recipe_of({**ONE_SHOT, "scope": scope}, **changes)
    counts = [zeros(model) for _, model in steps(make_trial(digits, recipe))]
    assert len(counts) > 5
    assert set(counts) == {ASKED}


@pytest.mark.parametrize("changes", OPTIMIZERS, ids=lambda changes: changes["optimizer"])
@pytest.mark.parametrize("settings", BOTH, ids=name_of)
def test_every_rung_measures_a_model_as_sparse_as_asked(
    digits: ImageStore, settings: dict[str, Any], changes: dict[str, Any]
) -> None:
    recipe = recipe_of({**settings, "scope": "global"}, **changes)
    trial = make_trial(digits, recipe)
    for _ in trial.stops:
        trial.advance()
        assert zeros(trial.measured_model) == ASKED
        assert trial.measurement is not None
        assert trial.measurement.nonzero_params <= PARAMS - ASKED


@pytest.mark.parametrize("scope", ["layer", "global"])
def test_gradual_follows_the_cubic_schedule(digits: ImageStore, scope: str) -> None:
    recipe = recipe_of({**GRADUAL, "scope": scope, "ramp": 0.5}, target_flops=1.3e9)
    trial = make_trial(digits, recipe, levels=(1.3e9,))
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
    magnitude.prepare(model, make_context(model, ONE_SHOT))
    for name, left in backbone_weights(model).items():
        gone = weights[name][left == 0]
        assert abs(len(gone) - 0.9 * left.numel()) <= 1
        assert gone.abs().max() < weights[name][left != 0].abs().min()


def test_layers_differ_in_sparsity_where_they_compete() -> None:
    for scope, different in (("layer", False), ("global", True)):
        model = backbones.build(SMALL, num_classes=4)
        magnitude.prepare(model, make_context(model, {**ONE_SHOT, "scope": scope}))
        sizes = {name: w.numel() for name, w in backbone_weights(model).items()}
        shares = [zeros_by_weight(model)[name] / sizes[name] for name in sizes]
        assert (max(shares) - min(shares) > 0.1) is different


def test_the_linear_regime_learns_from_features_of_the_sparse_backbone(digits: ImageStore) -> None:
    recipe = recipe_of(ONE_SHOT, trainable_depth=0.0)
    trial = make_trial(digits, recipe, weights=pretrained(), levels=HEAD_LEVELS)
    run(trial)
    assert zeros(trial.measured_model) == ASKED
    assert trial.measurement is not None
    assert trial.measurement.updated_params == HEAD
    assert trial.measurement.sparse_train_flops < 0.2 * trial.measurement.train_flops


@pytest.mark.parametrize(("depth", "levels"), [(0.0, REPAIRED_LEVELS), (0.5, LEVELS)])
def test_a_resumed_run_of_frozen_layers_is_the_run_itself(
    digits: ImageStore, tmp_path: Path, depth: float, levels: tuple[float, ...]
) -> None:
    settings = {**ONE_SHOT, "batch_norm_repair": True}
    recipe = recipe_of(settings, trainable_depth=depth, target_flops=levels[-1])
    assert_resumes(digits, recipe, tmp_path, weights=pretrained(), levels=levels)


@pytest.mark.parametrize("changes", OPTIMIZERS, ids=lambda changes: changes["optimizer"])
def test_a_resumed_run_is_the_run_itself(
    digits: ImageStore, tmp_path: Path, changes: dict[str, Any]
) -> None:
    later = rung_levels(min_flops=5e8, max_flops=1e9, per_decade=10)
    recipe = recipe_of({**GRADUAL, "scope": "global"}, target_flops=later[-1], **changes)
    assert_resumes(digits, recipe, tmp_path, weights=pretrained(), levels=later)


@pytest.mark.parametrize("settings", BOTH, ids=name_of)
def test_the_exported_backbone_is_as_sparse_as_asked(
    digits: ImageStore, tmp_path: Path, settings: dict[str, Any]
) -> None:
    model = assert_exports(digits, recipe_of(settings), tmp_path, weights=pretrained())
    assert zeros(model) == ASKED


@pytest.mark.parametrize("settings", BOTH, ids=name_of)
def test_no_sparsity_is_plain_finetuning(digits: ImageStore, settings: dict[str, Any]) -> None:
    assert_plain_finetuning(digits, recipe_of({**settings, "sparsity": 0.0}))


def test_the_repair_costs_its_forward_passes_and_nothing_else_does() -> None:
    model = backbones.build(SMALL, num_classes=4)
    before = model.get_buffer("conv1.1.running_mean").clone()
    assert magnitude.prepare(model, make_context(model, ONE_SHOT)).flops == 0
    assert torch.equal(model.get_buffer("conv1.1.running_mean"), before)
    repaired = {**ONE_SHOT, "batch_norm_repair": True}
    prepared = magnitude.prepare(model, make_context(model, repaired, images=40))
    assert prepared.flops == 40 * count_flops(model, resolution=32).forward_flops
    assert not torch.equal(model.get_buffer("conv1.1.running_mean"), before)
    assert magnitude.prepare(model, make_context(model, GRADUAL)).flops == 0


@pytest.mark.parametrize("settings", BOTH, ids=name_of)
def test_what_is_held_at_zero_is_not_updated(digits: ImageStore, settings: dict[str, Any]) -> None:
    for measured in run(make_trial(digits, recipe_of(settings, target_flops=LEVELS[1]))):
        assert measured.updated_params == PARAMS - ASKED


def test_a_step_held_sparse_could_skip_its_zeros(digits: ImageStore) -> None:
    dense, sparse, gradual = (
        run(make_trial(digits, recipe_of(settings)))[-1]
        for settings in ({"sparsity": 0.0}, ONE_SHOT, GRADUAL)
    )
    assert dense.train_flops == sparse.train_flops == gradual.train_flops
    assert dense.sparse_train_flops == dense.train_flops
    assert sparse.sparse_train_flops < 0.2 * dense.train_flops
    assert sparse.sparse_train_flops < gradual.sparse_train_flops < 0.8 * dense.train_flops
    assert sparse.sparse_inference_flops == gradual.sparse_inference_flops
    assert sparse.sparse_inference_flops < 0.2 * sparse.inference_flops


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({}, "sparsity is missing"),
        ({"sparsity": 1.0}, "sparsity=1.0 must be less than 1"),
        ({"sparsity": -0.1}, "sparsity=-0.1 must be greater than or equal to 0"),
        ({"sparsity": 0.99999}, "leaves 4 of 370608 values to 15 layers"),
        ({"sparsity": 0.5, "scope": "row"}, "scope='row' must be 'layer' or 'global'"),
        ({"sparsity": 0.5, "sparsification": "gradual"}, "needs a ramp"),
        ({**GRADUAL, "ramp": 0.0}, "ramp=0.0 must be greater than 0"),
        ({**GRADUAL, "batch_norm_repair": True}, "batch_norm_repair=True must be false"),
        ({**ONE_SHOT, "ramp": 0.5}, "ramp=0.5 must be left out with one_shot"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings: dict[str, Any], complaint: str) -> None:
    with pytest.raises(InputError, match=complaint):
        check(recipe_of(settings))


def test_gradual_pruning_of_frozen_layers_is_refused() -> None:
    check(recipe_of(ONE_SHOT, trainable_depth=0.0))
    with pytest.raises(InputError, match="magnitude with trainable_depth=0.5 must be 1; choose"):
        check(recipe_of(GRADUAL, trainable_depth=0.5))


def test_a_model_without_weights_to_mask_is_refused() -> None:
    source = BackboneSource(model="tests.trainables.mechanisms.sparse_models:weightless")
    with pytest.raises(InputError, match="Sequential has no convolution or linear layer below"):
        check(recipe_of(ONE_SHOT), source=source)


def test_its_space_draws_recipes_that_train(digits: ImageStore) -> None:
    drawn = drawn_recipes("magnitude")
    for gradual in (False, True):
        recipe = next(r for r in drawn if ("ramp" in r.settings) is gradual and r.trainable_depth)
        trial = make_trial(digits, recipe, levels=(recipe.target_flops,))
        (measured,) = run(trial)
        assert measured.images_seen >= 2 * recipe.batch_size
        assert zeros(trial.measured_model) == round(float(recipe.settings["sparsity"]) * WEIGHTS)
