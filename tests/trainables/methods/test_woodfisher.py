"""WoodFisher: exact sparsity that lasts, less loss than by magnitude, and every product counted."""

from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from optuna.samplers import RandomSampler
from torch import Tensor, nn

from search_spaces.draws import draw
from search_spaces.methods.woodfisher import woodfisher as space
from search_spaces.problem import Problem
from search_spaces.recipe import Optimizer, Recipe, Schedule
from tests.trainables.contexts import make_context
from tests.trainables.methods.method_contract import (
    assert_exports,
    assert_plain_finetuning,
    assert_resumes,
    check,
    pretrained,
)
from tests.trainables.recipes import LEVELS, SMALL, make_recipe, make_trial, run
from trainables.backbones.build import normalisation
from trainables.backbones.layers import backbone_weights
from trainables.backbones.source import BackboneSource
from trainables.costs.flops import count_flops
from trainables.errors import InfeasibleError, InputError
from trainables.images.augment import model_inputs as normalised
from trainables.images.store import ImageStore
from trainables.mechanisms.masks import apply_masks
from trainables.mechanisms.sparsity import Scope, keep_largest
from trainables.methods import woodfisher
from trainables.rungs import rung_levels

SETTINGS: dict[str, Any] = {
    "sparsity": 0.9,
    "scope": "global",
    "block_size": 16,
    "samples": 2,
    "dampening": 1e-5,
    "batch_norm_repair": False,
}
WEIGHTS = 370_608
FREE = {"optimizer": Optimizer.SCHEDULE_FREE_ADAMW, "schedule": Schedule.CONSTANT}
LATER = rung_levels(min_flops=5e8, max_flops=1e9, per_decade=10)
"""Levels after the algebra, and after a schedule-free average has settled."""


def recipe_with(*, settings: dict[str, Any] | None = None, **changes: Any) -> Recipe:
    chosen = SETTINGS | (settings or {})
    values = {"method": "woodfisher", "settings": chosen, "target_flops": LATER[-1]}
    return make_recipe(**values | changes)


def backbone() -> nn.Module:
    torch.manual_seed(0)
    return timm.create_model("test_resnet", num_classes=5)


def weightless(num_classes: int) -> nn.Module:
    return nn.Sequential(
        nn.BatchNorm2d(3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, num_classes)
    )


def zeros_of(model: nn.Module) -> int:
    return sum(int((w == 0).sum()) for w in backbone_weights(model).values())


def values_of(model: nn.Module) -> int:
    return sum(w.numel() for w in backbone_weights(model).values())


@pytest.fixture
def trained(digits: ImageStore) -> nn.Module:
    """A model that classifies the digits."""
    levels = rung_levels(min_flops=5e9, max_flops=1e10, per_decade=4)
    recipe = make_recipe(
        method="full", settings={}, learning_rate=0.02, batch_size=16, target_flops=levels[-1]
    )
    trial = make_trial(digits, recipe, levels=levels)
    run(trial)
    model: nn.Module = trial.measured_model.requires_grad_()
    return model


def training_images(store: ImageStore, model: nn.Module) -> tuple[Tensor, Tensor]:
    mean, std = normalisation(SMALL, model)
    split = store.splits["train"]
    return normalised(split.images, resolution=16, mean=mean, std=std), split.labels


def test_the_loss_rises_far_less_than_by_magnitude(digits: ImageStore, trained: nn.Module) -> None:
    images, labels = training_images(digits, trained)

    def loss(model: nn.Module) -> float:
        with torch.no_grad():
            return F.cross_entropy(model.eval()(images), labels).item()

    assert loss(trained) < 0.05
    by_magnitude, by_fisher = deepcopy(trained), deepcopy(trained)
    sizes = {name: w.detach().abs() for name, w in backbone_weights(by_magnitude).items()}
    apply_masks(by_magnitude, keep_largest(sizes, sparsity=0.9, scope=Scope.GLOBAL))
    settings = SETTINGS | {"block_size": 32, "samples": 96}
    context = make_context(
        by_fisher,
        settings,
        recipe=make_recipe(method="woodfisher", settings=settings, resolution=16),
        labelled=lambda most: zip(images[:most].split(16), labels[:most].split(16), strict=True),
    )
    woodfisher.prepare(by_fisher, context)
    assert zeros_of(by_fisher) == zeros_of(by_magnitude) == round(0.9 * values_of(trained))
    assert loss(by_fisher) - loss(trained) < 0.5 * (loss(by_magnitude) - loss(trained))


@pytest.mark.parametrize("changes", [{}, FREE])
def test_the_exported_file_is_exactly_as_sparse_as_asked(
    digits: ImageStore, tmp_path: Path, changes: dict[str, Any]
) -> None:
    recipe = recipe_with(weight_decay=0.1, **changes)
    model = assert_exports(digits, recipe, tmp_path, weights=pretrained(), levels=LATER)
    assert zeros_of(model) == round(0.9 * values_of(model))


def test_the_linear_regime_keeps_the_sparse_backbone(digits: ImageStore, tmp_path: Path) -> None:
    levels = rung_levels(min_flops=4e8, max_flops=4.2e8, per_decade=20)
    recipe = recipe_with(trainable_depth=0.0, target_flops=levels[-1])
    model = assert_exports(digits, recipe, tmp_path, levels=levels)
    assert zeros_of(model) == round(0.9 * values_of(model))


def test_every_rung_is_as_sparse_and_only_what_is_left_is_updated(digits: ImageStore) -> None:
    trial = make_trial(digits, recipe_with(), levels=LATER)
    for measured in run(trial):
        assert values_of(trial.measured_model) == WEIGHTS
        pruned = round(0.9 * WEIGHTS)
        assert measured.updated_params == measured.params - pruned
        assert zeros_of(trial.measured_model) == pruned
        assert measured.sparse_train_flops < measured.train_flops


def test_a_resumed_run_is_the_run_itself(digits: ImageStore, tmp_path: Path) -> None:
    assert_resumes(digits, recipe_with(weight_decay=0.1), tmp_path / "sgd", levels=LATER)
    assert_resumes(digits, recipe_with(**FREE), tmp_path / "free", levels=LATER)


def test_a_sparsity_of_zero_is_plain_finetuning(digits: ImageStore, tmp_path: Path) -> None:
    assert_plain_finetuning(digits, recipe_with(settings={"sparsity": 0.0}, target_flops=LEVELS[1]))
    assert_resumes(digits, make_recipe(method="woodfisher", settings={"sparsity": 0.0}), tmp_path)


def test_it_costs_the_gradients_the_algebra_and_the_repair() -> None:
    model = backbone()
    cost = count_flops(model, resolution=32)
    sizes = [w.numel() for w in backbone_weights(model).values()]
    blocks = sum(-(-size // 16) for size in sizes)
    assert min(sizes) >= 16
    algebra = blocks * (5 * (4 * 16**2 + 2 * 16) + 2 / 3 * 16**3 + 4 * 16**2)
    gradients = 5 * (cost.train_flops - 2 * 96 * 5)  # but for the head's weight
    settings = SETTINGS | {"samples": 5, "batch_norm_repair": True}
    prepared = woodfisher.prepare(model, make_context(model, settings, images=40))
    assert prepared.flops == pytest.approx(gradients + algebra + 40 * cost.forward_flops)
    assert prepared.flops > gradients + algebra


def test_batch_norm_repair_fits_the_statistics_to_what_is_left() -> None:
    variances = []
    for repair in (True, False):
        model = backbone()
        context = make_context(model, SETTINGS | {"batch_norm_repair": repair})
        woodfisher.prepare(model, context)
        variances.append(model.get_buffer("layer4.0.bn1.running_var"))
    assert not torch.equal(*variances)


def test_no_image_and_too_weak_dampening_are_infeasible() -> None:
    model = backbone()
    with pytest.raises(InfeasibleError, match="There is no labelled image"):
        woodfisher.prepare(model, make_context(model, SETTINGS, images=0))
    with torch.no_grad():
        model.get_parameter("conv1.0.weight")[0] = torch.inf
    with pytest.raises(InfeasibleError, match="raise it") as caught:
        woodfisher.prepare(model, make_context(model, SETTINGS))
    assert caught.value.spent_flops > 2 * count_flops(model, resolution=32).forward_flops


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"sparsity": 1.0}, "sparsity=1.0 must be less than 1"),
        ({"sparsity": -0.1}, "sparsity=-0.1 must be greater than or equal to 0"),
        ({"sparsity": 0.99999}, "sparsity=0.99999 leaves 4 of 370608 values to"),
        ({"sparsity": 0.9, "scope": "block"}, "scope='block' must be 'layer' or 'global'"),
        ({"sparsity": 0.9, "block_size": 0}, "block_size=0 must be greater than or equal to 1"),
        ({"sparsity": 0.9, "dampening": 0.0}, "dampening=0.0 must be greater than 0"),
        ({"sparsity": 0.9, "samples": 0}, "samples=0 must be greater than or equal to 1"),
        ({}, "sparsity is missing"),
    ],
)
def test_bad_settings_are_refused(settings: dict[str, Any], complaint: str) -> None:
    with pytest.raises(InputError, match=complaint):
        check(make_recipe(method="woodfisher", settings=settings))


def test_a_model_without_weights_is_refused() -> None:
    with pytest.raises(InputError, match="Sequential has no convolution or linear layer"):
        check(recipe_with(), source=BackboneSource(model=f"{__name__}:weightless"))


def test_every_recipe_of_the_space_is_good_and_one_trains(digits: ImageStore) -> None:
    problem = Problem(rungs=LEVELS, native_resolution=16, train_images=96, classes=4)
    recipes = [draw(space, {}, problem, RandomSampler(seed=seed)).recipe for seed in range(32)]
    for recipe in recipes:
        check(recipe)
        assert recipe.method == "woodfisher"
    small = {**recipes[0].settings, "samples": 2, "block_size": 16, "batch_norm_repair": False}
    recipe = replace(recipes[0], settings=small, batch_size=8, target_flops=1e9)
    assert run(make_trial(digits, recipe, levels=(1e9,)))[-1].images_seen >= 16
