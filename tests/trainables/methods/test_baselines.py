"""The baselines: what each trains, and that it is plain training of just that."""

from pathlib import Path
from typing import Any

import pytest
from torch import nn

from search_spaces.recipe import Recipe
from tests.trainables.methods.method_contract import (
    assert_exports,
    assert_plain_finetuning,
    assert_resumes,
    changed,
    check,
    pretrained,
)
from tests.trainables.recipes import LEVELS, make_recipe, make_trial, run
from trainables.backbones import build as backbones
from trainables.backbones.source import BackboneSource
from trainables.errors import InputError
from trainables.images.store import ImageStore
from trainables.rungs import rung_levels

DEPTH = {"full": 1.0, "linear_probe": 0.0, "norm_and_head": 1.0, "from_scratch": 1.0}
DEPTHS = {**DEPTH, "last_stages": 0.5}
FEW = LEVELS[-2]


def recipe_of(method: str, **changes: Any) -> Recipe:
    values = {"trainable_depth": DEPTHS[method], **changes}
    return make_recipe(method=method, settings={}, **{"target_flops": FEW, **values})


def normless(num_classes: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 4)
    )


@pytest.mark.parametrize("method", DEPTHS)
def test_a_resumed_run_is_the_run_itself(digits: ImageStore, tmp_path: Path, method: str) -> None:
    if method == "linear_probe":  # its steps are so cheap that it ends long before
        levels = rung_levels(min_flops=1.6e8, max_flops=1.77e8, per_decade=120)
        recipe = recipe_of(method, target_flops=levels[-1])
        assert_resumes(digits, recipe, tmp_path, levels=levels)
    else:
        assert_resumes(digits, recipe_of(method), tmp_path)


@pytest.mark.parametrize("method", DEPTHS)
def test_it_exports_the_backbones_structure(
    digits: ImageStore, tmp_path: Path, method: str
) -> None:
    weights = pretrained()
    model = assert_exports(digits, recipe_of(method), tmp_path, weights=weights)
    moved = {name for name, count in changed(model, weights).items() if count}
    norms = {name for name in weights if ".bn" in name or ".1." in name}
    if method == "linear_probe":
        assert not moved
    elif method == "norm_and_head":
        assert moved
        assert all(weights[name].ndim == 1 for name in moved)
    elif method == "last_stages":
        assert any(name.startswith("layer4") for name in moved)
        assert not any(name.startswith("conv1") for name in moved)
    else:
        assert {"conv1.0.weight", "layer4.0.conv1.weight"} <= moved
    assert norms


def test_dense_filter_pruning_is_full_finetuning(digits: ImageStore) -> None:
    assert_plain_finetuning(digits, make_recipe(pruning_ratio=0.0))


def test_from_scratch_is_full_finetuning_of_a_backbone_without_weights(digits: ImageStore) -> None:
    random = make_trial(digits, recipe_of("full"))
    scratch = make_trial(digits, recipe_of("from_scratch"), weights=pretrained())
    assert [m.val_loss for m in run(random)] == [m.val_loss for m in run(scratch)]


def test_the_pretrained_weights_are_worth_something_else(digits: ImageStore) -> None:
    full = make_trial(digits, recipe_of("full"), weights=pretrained())
    scratch = make_trial(digits, recipe_of("from_scratch"), weights=pretrained())
    assert [m.val_loss for m in run(full)] != [m.val_loss for m in run(scratch)]


def test_norms_and_head_have_no_weight_gradient_to_pay_for(digits: ImageStore) -> None:
    def step_flops(method: str) -> float:
        curve = run(make_trial(digits, recipe_of(method)))
        return curve[0].train_flops / curve[0].images_seen

    full, norms, probe = map(step_flops, ("full", "norm_and_head", "linear_probe"))
    assert probe < norms < 0.75 * full


def test_updated_params_are_those_that_may_change(digits: ImageStore) -> None:
    model = backbones.build(BackboneSource(model="test_resnet"), num_classes=4)
    sizes = {name: p.numel() for name, p in model.named_parameters()}
    head = sum(size for name, size in sizes.items() if name.startswith("fc."))
    vectors = sum(p.numel() for n, p in model.named_parameters() if p.ndim == 1 and "fc" not in n)
    counted = {m: run(make_trial(digits, recipe_of(m)))[-1].updated_params for m in DEPTHS}
    assert counted["full"] == counted["from_scratch"] == sum(sizes.values())
    assert counted["linear_probe"] == head
    assert counted["norm_and_head"] == head + vectors
    assert head < counted["last_stages"] < sum(sizes.values())


@pytest.mark.parametrize("method", DEPTHS)
def test_it_has_no_settings(method: str) -> None:
    check(recipe_of(method))
    with pytest.raises(InputError, match="sparsity is no setting of the method, which has none"):
        check(make_recipe(method=method, settings={"sparsity": 0.5}))


@pytest.mark.parametrize("method", DEPTHS)
def test_a_depth_that_is_another_methods_is_refused(method: str) -> None:
    wrong = {"linear_probe": 0.5, "last_stages": 1.0}.get(method, 0.0)
    with pytest.raises(InputError, match=f"{method} with trainable_depth={wrong:g} must"):
        check(recipe_of(method, trainable_depth=wrong))


def test_a_model_without_norms_is_refused() -> None:
    source = BackboneSource(model=f"{__name__}:normless")
    with pytest.raises(InputError, match="norm_and_head trains norms, and Sequential has none"):
        check(recipe_of("norm_and_head"), source=source)
