"""FISH mask: exactly k values of the backbone change, those with the largest Fisher."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from optuna.samplers import RandomSampler
from torch import nn

from search_spaces.draws import draw
from search_spaces.methods.fish_mask import fish_mask as space
from search_spaces.problem import Problem
from search_spaces.recipe import Optimizer, Recipe, Schedule
from tests.trainables.contexts import make_context
from tests.trainables.methods.method_contract import (
    assert_exports,
    assert_plain_finetuning,
    assert_resumes,
    changed,
    check,
    pretrained,
)
from tests.trainables.recipes import LEVELS, make_recipe, make_trial, run
from trainables.backbones.source import BackboneSource
from trainables.costs.flops import count_flops
from trainables.errors import InfeasibleError, InputError
from trainables.images.store import ImageStore
from trainables.learning.batch_norm import trained_batch_norms
from trainables.learning.freezing import train_mode
from trainables.mechanisms.anchors import AnchoredTransfer
from trainables.methods import fish_mask
from trainables.rungs import rung_levels

HEAD = 96 * 4 + 4
BACKBONE = 373_076 - HEAD
OPTIMIZERS = [
    {"optimizer": Optimizer.SGD},
    {"optimizer": Optimizer.ADAMW},
    {"optimizer": Optimizer.SCHEDULE_FREE_ADAMW, "schedule": Schedule.CONSTANT},
]


def recipe_with(*, share: float = 0.005, samples: int = 8, **changes: Any) -> Recipe:
    settings = {"share": share, "samples": samples}
    return make_recipe(method="fish_mask", settings=settings, **changes)


def backbone() -> nn.Module:
    torch.manual_seed(0)
    return timm.create_model("test_resnet", num_classes=5)


def weightless(num_classes: int) -> nn.Module:
    return nn.Sequential(
        nn.BatchNorm2d(3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, num_classes)
    )


@pytest.mark.parametrize("changes", OPTIMIZERS, ids=lambda changes: changes["optimizer"])
def test_exactly_k_values_of_the_exported_backbone_change(
    digits: ImageStore, tmp_path: Path, changes: dict[str, Any]
) -> None:
    weights = pretrained()
    recipe = recipe_with(weight_decay=0.1, learning_rate=0.02, **changes)
    model = assert_exports(digits, recipe, tmp_path, weights=weights)
    counts = changed(model, weights)
    k = round(0.005 * BACKBONE)
    assert sum(counts.values()) == k
    assert 0 < sum(count > 0 for count in counts.values()) < len(counts)


def test_a_resumed_run_is_the_run_itself(digits: ImageStore, tmp_path: Path) -> None:
    assert_resumes(digits, recipe_with(weight_decay=0.1), tmp_path, weights=pretrained())
    later = rung_levels(min_flops=5e8, max_flops=1e9, per_decade=10)  # its average must settle
    free = recipe_with(share=0.3, target_flops=later[-1], **OPTIMIZERS[-1])
    assert_resumes(digits, free, tmp_path / "free", weights=pretrained(), levels=later)


def test_a_share_of_one_is_plain_finetuning(digits: ImageStore, tmp_path: Path) -> None:
    assert_plain_finetuning(digits, recipe_with(share=1.0))
    assert_resumes(digits, recipe_with(share=1.0), tmp_path)


def test_updated_params_are_k_and_the_head(digits: ImageStore) -> None:
    for share in (0.001, 0.2):
        curve = run(make_trial(digits, recipe_with(share=share, target_flops=LEVELS[0])))
        assert curve[-1].updated_params == round(share * BACKBONE) + HEAD
        assert curve[-1].sparse_train_flops == curve[-1].train_flops


def test_the_values_with_the_largest_fisher_are_free() -> None:
    model = backbone()
    context = make_context(model, {"share": 0.01, "samples": 6})
    expected = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    model.eval()
    for images, labels in context.labelled(6):
        for image, label in zip(images, labels, strict=True):
            model.zero_grad()
            F.cross_entropy(model(image[None]), label[None]).backward()
            for name, parameter in model.named_parameters():
                assert parameter.grad is not None
                expected[name] += parameter.grad.square()
    model.zero_grad()
    del expected["fc.weight"], expected["fc.bias"]
    transfer = fish_mask.prepare(model, context).transfer
    assert isinstance(transfer, AnchoredTransfer)
    transfer.attach(model)
    held = [expected[name][~mask] for name, mask in transfer.masks.items()]
    frozen = [n for n, p in model.named_parameters() if not p.requires_grad]
    held += [expected[name].flatten() for name in frozen]
    free = torch.cat([expected[name][mask] for name, mask in transfer.masks.items()])
    values = sum(sums.numel() for sums in expected.values())
    assert len(free) == round(0.01 * values) == values - sum(len(part) for part in held)
    assert free.min() >= torch.cat(held).max()


def test_choosing_costs_a_forward_and_backward_pass_for_every_image() -> None:
    model = backbone()
    with_head = count_flops(model, resolution=32).train_flops
    head = 2 * 96 * 5  # of its weight's gradient
    for asked, used in ((12, 12), (100, 40)):
        context = make_context(model, {"share": 0.01, "samples": asked}, images=40)
        assert fish_mask.prepare(model, context).flops == used * (with_head - head)
    assert all(p.requires_grad for p in model.parameters())


def test_a_layer_without_a_chosen_value_has_no_weight_gradient_to_pay_for() -> None:
    model = backbone()
    dense = count_flops(model, resolution=32).train_flops
    context = make_context(model, {"share": 1e-4, "samples": 8})
    prepared = fish_mask.prepare(model, context)
    prepared.transfer.attach(model)
    frozen = [name for name, p in model.named_parameters() if not p.requires_grad]
    assert frozen == list(prepared.structure["frozen"])
    assert frozen
    assert all(name.endswith(".weight") and ".bn" not in name for name in frozen)
    assert count_flops(model, resolution=32).train_flops < dense
    train_mode(model)
    norms = [name for name, m in model.named_modules() if isinstance(m, nn.BatchNorm2d)]
    assert list(trained_batch_norms(model)) == norms, "statistics follow the images everywhere"


def test_no_image_and_an_infinite_gradient_are_infeasible() -> None:
    model = backbone()
    nothing = make_context(model, {"share": 0.01}, images=0)
    with pytest.raises(InfeasibleError, match="There is no labelled image"):
        fish_mask.prepare(model, nothing)
    with torch.no_grad():
        model.get_parameter("conv1.0.weight")[0] = torch.inf
    context = make_context(model, {"share": 0.01, "samples": 3})
    with pytest.raises(InfeasibleError, match="The gradient of .* is not finite") as caught:
        fish_mask.prepare(model, context)
    assert caught.value.spent_flops > 0


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"share": 1.5}, "share=1.5 must be less than or equal to 1"),
        ({"share": 0.0}, "share=0.0 must be greater than 0"),
        ({"share": 1e-7}, "share=1e-07 of the 372688 values below the head is less than one"),
        ({"share": 0.1, "samples": 0}, "samples=0 must be greater than or equal to 1"),
        ({}, "share is missing"),
    ],
)
def test_bad_settings_are_refused(settings: dict[str, Any], complaint: str) -> None:
    with pytest.raises(InputError, match=complaint):
        check(make_recipe(method="fish_mask", settings=settings))


def test_a_smaller_depth_and_a_model_without_weights_are_refused() -> None:
    with pytest.raises(InputError, match=r"trainable_depth=0\.5 must be 1; the Fisher"):
        check(recipe_with(trainable_depth=0.5))
    with pytest.raises(InputError, match="Sequential has no convolution or linear layer below"):
        check(recipe_with(share=0.5), source=BackboneSource(model=f"{__name__}:weightless"))


def test_every_recipe_of_the_space_is_good_and_one_trains(digits: ImageStore) -> None:
    problem = Problem(rungs=LEVELS, native_resolution=16, train_images=96, classes=4)
    recipes = [draw(space, {}, problem, RandomSampler(seed=seed)).recipe for seed in range(32)]
    for recipe in recipes:
        check(recipe)
        assert recipe.method == "fish_mask"
    small = replace(recipes[0], settings={**recipes[0].settings, "samples": 8}, batch_size=8)
    assert run(make_trial(digits, replace(small, target_flops=LEVELS[0])))[-1].images_seen >= 16
