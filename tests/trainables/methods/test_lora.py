"""LoRA: updates of the rank asked for, paid for, on convolutions of every kind, merged."""

from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from optuna.samplers import RandomSampler
from torch import Tensor, nn

from search_spaces.draws import draw
from search_spaces.methods.lora import lora
from search_spaces.problem import Problem
from search_spaces.recipe import Optimizer, Recipe
from tests.trainables.budgets import FREE_LEVELS, LEVELS, optimized
from tests.trainables.methods.method_contract import (
    assert_exports,
    assert_plain_finetuning,
    assert_resumes,
    changed,
    check,
    pretrained,
)
from tests.trainables.recipes import make_recipe, make_trial, run
from trainables.backbones.layers import backbone_weights
from trainables.backbones.source import BackboneSource
from trainables.costs.flops import count_flops
from trainables.errors import InputError
from trainables.images.store import ImageStore
from trainables.method import Transfer
from trainables.methods.lora import Lora, LowRankUpdate

RANK = 2


def recipe_of(
    *, rank: int = RANK, alpha: float = 4.0, norms: bool = True, **changes: Any
) -> Recipe:
    settings = {"rank": rank, "alpha": alpha, "norms": norms}
    return make_recipe(method="lora", settings=settings, **{"target_flops": LEVELS[-1], **changes})


def adapted(plain: nn.Module, *, norms: bool = True) -> tuple[nn.Module, Transfer]:
    model = deepcopy(plain)
    transfer = Lora(rank=RANK, alpha=4.0, norms=norms, seed=1)
    transfer.attach(model)
    return model, transfer


def updates(model: nn.Module) -> list[LowRankUpdate]:
    return [module for module in model.modules() if isinstance(module, LowRankUpdate)]


def images() -> Tensor:
    return torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("optimizer", Optimizer)
def test_a_resumed_run_is_the_run_itself(
    digits: ImageStore, tmp_path: Path, optimizer: Optimizer
) -> None:
    levels = FREE_LEVELS if optimizer is Optimizer.SCHEDULE_FREE_ADAMW else LEVELS
    recipe = recipe_of(**optimized(optimizer))
    assert_resumes(digits, recipe, tmp_path, levels=levels[1:], weights=pretrained())


def test_it_exports_updates_of_low_rank_in_the_backbones_structure(
    digits: ImageStore, tmp_path: Path
) -> None:
    weights = pretrained()
    model = assert_exports(digits, recipe_of(learning_rate=0.1), tmp_path, weights=weights)
    for name, weight in backbone_weights(model).items():
        moved = (weight.detach() - weights[name]).flatten(1).double()
        sizes = torch.linalg.svdvals(moved)
        assert sizes[0] > 0
        assert (sizes[RANK:] < 1e-2 * sizes[0]).all()  # what rounding leaves
    assert changed(model, weights)["layer1.0.bn1.weight"] > 0


def test_without_norms_they_stay(digits: ImageStore, tmp_path: Path) -> None:
    weights = pretrained()
    model = assert_exports(digits, recipe_of(norms=False), tmp_path, weights=weights)
    vectors = {name for name, p in model.named_parameters() if p.ndim == 1 and "fc" not in name}
    assert not any(count for name, count in changed(model, weights).items() if name in vectors)


def test_rank_zero_is_plain_finetuning(digits: ImageStore) -> None:
    assert_plain_finetuning(digits, recipe_of(rank=0, trainable_depth=0.5))


@pytest.mark.parametrize(
    "name", ["test_resnet", "mobilenetv2_050", "tf_mobilenetv3_small_minimal_100"]
)
def test_the_first_model_is_the_backbone_and_the_last_is_merged(name: str) -> None:
    torch.manual_seed(0)
    plain = timm.create_model(name, num_classes=5).eval()
    model, transfer = adapted(plain)
    assert torch.equal(model(images()), plain(images()))
    with torch.no_grad():
        for update in updates(model):
            update.up.normal_(std=0.01, generator=torch.Generator().manual_seed(3))
    logits = model(images())
    assert not torch.allclose(logits, plain(images()))
    merged = transfer.finished(model)
    assert torch.equal(merged(images()), logits)
    assert torch.equal(model(images()), logits), "the model that is trained lost its weights"
    assert [type(m) for m in merged.modules()] == [type(m) for m in plain.modules()]


def test_a_step_costs_full_finetuning_and_the_products_of_the_adapters() -> None:
    plain = timm.create_model("mobilenetv2_050", num_classes=5)
    model, _ = adapted(plain)
    cost, full = (count_flops(one, resolution=32) for one in (model, plain))
    products = sum(2 * u.up.numel() * u.down.shape[1] for u in updates(model))
    assert cost.forward_flops == full.forward_flops
    assert cost.train_flops == full.train_flops
    assert cost.fixed_flops == 3 * products


@pytest.mark.parametrize("norms", [True, False])
def test_what_is_trained_is_counted(digits: ImageStore, norms: bool) -> None:
    trial = make_trial(digits, recipe_of(norms=norms))
    curve = run(trial)
    weights = backbone_weights(timm.create_model("test_resnet", num_classes=4))
    factors = sum(RANK * (len(w) + w[0].numel()) for w in weights.values())
    assert curve[-1].updated_params == factors + 97 * 4 + norms * 2080


def test_no_rank_is_above_the_matrixs_own() -> None:
    update = LowRankUpdate(torch.zeros(8, 1, 3, 3), rank=32, scale=1.0, draws=torch.Generator())
    assert update.up.shape == (8, 8)
    assert update.down.shape == (8, 9)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rank": -1}, "rank=-1 must be greater than or equal to 0"),
        ({"rank": 2.5}, "rank=2.5 must be a valid integer"),
        ({"alpha": 0.0}, "alpha=0.0 must be greater than 0"),
        ({"norms": 1}, "norms=1 must be a valid boolean"),
        ({"trainable_depth": 0.5}, "trainable_depth=0.5 must be 1; every layer is adapted"),
    ],
)
def test_bad_settings_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        check(recipe_of(**changes))


def head_alone(num_classes: int) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.BatchNorm1d(768), nn.Linear(768, num_classes))


def test_a_model_of_a_head_alone_is_refused() -> None:
    with pytest.raises(InputError, match="layers below the head, and Sequential has none"):
        check(recipe_of(), source=BackboneSource(model=f"{__name__}:head_alone"))


def test_what_the_space_draws_is_sound_and_trains(digits: ImageStore) -> None:
    problem = Problem(rungs=(LEVELS[-1],), native_resolution=16, train_images=96, classes=4)
    drawn = [draw(lora, {}, problem, RandomSampler(seed=seed)).recipe for seed in range(40)]
    for recipe in drawn:
        check(recipe)
    ranks = [recipe.settings["rank"] for recipe in drawn]
    assert min(ranks) == 1
    assert 16 < max(ranks) <= 32
    trial = make_trial(digits, replace(drawn[0], batch_size=16), levels=LEVELS[-1:])
    run(trial)
    assert trial.stops[-1].steps >= 2
    assert trial.measurement is not None
