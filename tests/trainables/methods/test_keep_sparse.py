"""A sparse backbone keeps its zeros, whatever is trained and however."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from search_spaces.recipe import Recipe
from search_spaces.space import missing_condition
from tests.trainables.mechanisms.sparse_models import (
    HEAD,
    OPTIMIZERS,
    PARAMS,
    PROBLEM,
    WEIGHTS,
    drawn_recipes,
    steps,
    weightless,
    zeros,
    zeros_by_weight,
)
from tests.trainables.methods.method_contract import (
    assert_exports,
    assert_plain_finetuning,
    assert_resumes,
    pretrained,
)
from tests.trainables.recipes import LEVELS, SMALL, make_recipe, make_trial, run
from trainables.backbones import build as backbones
from trainables.backbones.layers import backbone_weights
from trainables.errors import InputError
from trainables.images.store import ImageStore
from trainables.mechanisms.sparsity import Scope, keep_largest
from trainables.method import Conditions
from trainables.methods import keep_sparse
from trainables.rungs import rung_levels

HEAD_LEVELS = rung_levels(min_flops=2.38e8, max_flops=2.8e8, per_decade=120)
ARRIVED = round(0.8 * WEIGHTS)


def recipe_of(**changes: Any) -> Recipe:
    return make_recipe(method="keep_sparse", settings={}, **changes)


def sparse_weights() -> backbones.Weights:
    """The pretrained ones, 0.8 of them zero."""
    weights = dict(pretrained())
    names = backbone_weights(backbones.build(SMALL, num_classes=7))
    scores = {name: weights[name].abs() for name in names}
    for name, mask in keep_largest(scores, sparsity=0.8, scope=Scope.GLOBAL).items():
        weights[name] = weights[name] * mask
    return weights


def sparse_model() -> nn.Module:
    model = backbones.build(SMALL, num_classes=4)
    backbones.load_into(model, sparse_weights(), source=SMALL)
    return model


@pytest.mark.parametrize("changes", OPTIMIZERS, ids=lambda changes: changes["optimizer"])
def test_the_zeros_stay_and_nothing_else_goes(digits: ImageStore, changes: dict[str, Any]) -> None:
    weights = sparse_weights()
    trial = make_trial(digits, recipe_of(**changes), weights=weights)
    for _, model in steps(trial):
        assert zeros(model) == ARRIVED
    for name, weight in backbone_weights(trial.model).items():
        assert torch.equal(weight == 0, weights[name] == 0)
        kept = weights[name] != 0
        assert (weight[kept] != weights[name][kept]).float().mean() > 0.9


@pytest.mark.parametrize("changes", OPTIMIZERS, ids=lambda changes: changes["optimizer"])
def test_every_rung_measures_them(digits: ImageStore, changes: dict[str, Any]) -> None:
    trial = make_trial(digits, recipe_of(**changes), weights=sparse_weights())
    for _ in trial.stops:
        trial.advance()
        assert zeros(trial.measured_model) == ARRIVED


def test_the_exported_backbone_has_them(digits: ImageStore, tmp_path: Path) -> None:
    model = assert_exports(digits, recipe_of(), tmp_path, weights=sparse_weights())
    assert zeros_by_weight(model) == zeros_by_weight(sparse_model())


@pytest.mark.parametrize(("depth", "levels"), [(0.0, HEAD_LEVELS), (0.5, LEVELS), (1.0, LEVELS)])
def test_a_resumed_run_is_the_run_itself(
    digits: ImageStore, tmp_path: Path, depth: float, levels: tuple[float, ...]
) -> None:
    recipe = recipe_of(trainable_depth=depth, target_flops=levels[-1])
    assert_resumes(digits, recipe, tmp_path, weights=sparse_weights(), levels=levels)


def test_the_linear_regime_trains_the_head_alone(digits: ImageStore) -> None:
    recipe = recipe_of(trainable_depth=0.0)
    trial = make_trial(digits, recipe, weights=sparse_weights(), levels=HEAD_LEVELS)
    measured = run(trial)[-1]
    assert measured.updated_params == HEAD
    assert measured.sparse_train_flops < 0.5 * measured.train_flops
    for name, weight in backbone_weights(trial.measured_model).items():
        assert torch.equal(weight, sparse_weights()[name])


def test_zeros_are_not_updated_and_could_be_skipped(digits: ImageStore) -> None:
    recipe = recipe_of(target_flops=LEVELS[0])
    (sparse,) = run(make_trial(digits, recipe, weights=sparse_weights()))
    (full,) = run(make_trial(digits, replace(recipe, method="full"), weights=sparse_weights()))
    assert sparse.updated_params == PARAMS - ARRIVED
    assert sparse.train_flops == full.train_flops
    assert sparse.sparse_train_flops < 0.6 * full.sparse_train_flops


def test_a_dense_backbone_has_nothing_to_hold(digits: ImageStore) -> None:
    assert_plain_finetuning(digits, recipe_of(), weights=pretrained())


def test_a_dense_backbone_and_settings_are_refused() -> None:
    sparse = Conditions(model=sparse_model(), source_task=False)
    keep_sparse.check(recipe_of(), sparse)
    keep_sparse.check(recipe_of(trainable_depth=0.0), sparse)
    with pytest.raises(InputError, match="sparsity is no setting of the method, which has none"):
        keep_sparse.check(make_recipe(method="keep_sparse", settings={"sparsity": 0.5}), sparse)
    dense = Conditions(model=backbones.build(SMALL, num_classes=4), source_task=False)
    with pytest.raises(InputError, match="no weight of this ResNet is zero; choose a sparse"):
        keep_sparse.check(recipe_of(), dense)
    with pytest.raises(InputError, match="Sequential has no convolution or linear layer below"):
        keep_sparse.check(recipe_of(), Conditions(model=weightless(4), source_task=False))


def test_its_space_needs_a_sparse_backbone() -> None:
    assert missing_condition("keep_sparse", PROBLEM) is None
    dense = replace(PROBLEM, sparse_backbone=False)
    assert missing_condition("keep_sparse", dense) == "a backbone that arrives sparse"


def test_its_space_draws_recipes_that_train(digits: ImageStore) -> None:
    drawn = drawn_recipes("keep_sparse", model=sparse_model())
    recipe = next(recipe for recipe in drawn if recipe.trainable_depth > 0)
    levels = (recipe.target_flops,)
    trial = make_trial(digits, recipe, weights=sparse_weights(), levels=levels)
    (measured,) = run(trial)
    assert measured.images_seen >= 2 * recipe.batch_size
    assert zeros(trial.measured_model) == ARRIVED
