"""Filter pruning as a method: its settings, its cost and its structure."""

import copy
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import timm
import torch
from torch import nn

from search_spaces.recipe import Recipe
from tests.trainables.contexts import make_context
from tests.trainables.methods.examples.filter_pruning import EXAMPLE
from tests.trainables.recipes import make_recipe
from trainables.costs.flops import count_flops
from trainables.errors import InfeasibleError, InputError
from trainables.mechanisms.batch_norm_repair import CALIBRATION_IMAGES
from trainables.method import MethodContext
from trainables.methods import filter_pruning
from trainables.pruning import Criterion, PruningPlan, prune
from trainables.pruning.absorption import Absorbing
from trainables.pruning.reductions import Reduction
from trainables.pruning.ridge import fit_ridge


def context_for(
    model: nn.Module, *, images: int = 40, width_multiple: int = 1, **settings: Any
) -> MethodContext:
    settings = {**EXAMPLE.settings, **settings}
    return make_context(model, settings, images=images, width_multiple=width_multiple)


def recipe_with(**settings: Any) -> Recipe:
    return make_recipe(settings={**EXAMPLE.settings, **settings}, resolution=32)


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(0)
    made: nn.Module = timm.create_model("test_resnet", num_classes=5)
    return made


def test_it_costs_the_forward_passes_of_the_pruned_model(model: nn.Module) -> None:
    dense = count_flops(model, resolution=32).forward_flops
    prepared = filter_pruning.prepare(model, context_for(model))
    pruned = count_flops(model, resolution=32).forward_flops
    assert pruned < dense
    assert prepared.flops == 40 * pruned


def test_it_looks_at_no_more_images_than_it_says(model: nn.Module) -> None:
    prepared = filter_pruning.prepare(model, context_for(model, images=1000))
    pruned = count_flops(model, resolution=32).forward_flops
    assert prepared.flops == CALIBRATION_IMAGES * pruned


def test_its_statistics_are_those_of_the_pruned_model(model: nn.Module) -> None:
    before = model.get_buffer("layer4.0.bn1.running_var").clone()
    filter_pruning.prepare(model, context_for(model))
    after = model.get_buffer("layer4.0.bn1.running_var")
    assert len(after) < len(before)
    assert not torch.equal(after, torch.ones_like(after))


def test_a_ratio_of_zero_leaves_everything_and_costs_nothing(model: nn.Module) -> None:
    before = {name: value.clone() for name, value in model.state_dict().items()}
    context = context_for(model, pruning_ratio=0, batch_norm_repair=False, ridge_repair=True)
    prepared = filter_pruning.prepare(model, context)
    assert prepared.flops == 0
    after = model.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())
    filter_pruning.reshape(model, prepared.structure, context.recipe)
    assert model.state_dict().keys() == before.keys()


@pytest.mark.parametrize("width_rule", ["inner", "all"])
def test_a_fresh_model_takes_the_structure_and_then_the_weights(
    model: nn.Module, width_rule: str
) -> None:
    context = context_for(model, width_rule=width_rule)
    prepared = filter_pruning.prepare(model, context)
    fresh = timm.create_model("test_resnet", num_classes=5)
    filter_pruning.reshape(fresh, prepared.structure, context.recipe)
    fresh.load_state_dict(model.state_dict())
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(fresh.eval()(images), model.eval()(images))


def test_without_images_to_look_at_pruning_costs_nothing(model: nn.Module) -> None:
    assert filter_pruning.prepare(model, context_for(model, images=0)).flops == 0


def test_a_dense_models_norms_can_be_repaired_too(model: nn.Module) -> None:
    before = {name: value.clone() for name, value in model.state_dict().items()}
    dense = count_flops(model, resolution=32).forward_flops
    prepared = filter_pruning.prepare(model, context_for(model, pruning_ratio=0))
    assert prepared.flops == 40 * dense
    changed = {name for name, value in model.state_dict().items() if (value != before[name]).any()}
    statistics = ("running_mean", "running_var", "num_batches_tracked")
    assert changed
    assert all(name.endswith(statistics) for name in changed)


def test_without_repairs_nothing_is_spent_and_the_weights_are_those_that_stay(
    model: nn.Module,
) -> None:
    plain = copy.deepcopy(model)
    prepared = filter_pruning.prepare(model, context_for(model, batch_norm_repair=False))
    assert prepared.flops == 0
    plan = PruningPlan(ratio=0.5, criterion=Criterion.L2)
    assert prune(plain, plan, head="fc", resolution=32, seed=1).to_dict() == prepared.structure
    theirs = plain.state_dict()
    assert all(torch.equal(value, theirs[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("criterion", ["taylor", "fisher"])
def test_gradients_cost_passes_of_the_dense_model(model: nn.Module, criterion: str) -> None:
    dense = count_flops(model, resolution=32)
    assert 2.5 * dense.forward_flops < dense.train_flops < 3 * dense.forward_flops
    context = context_for(model, images=1000, criterion=criterion, batch_norm_repair=False)
    prepared = filter_pruning.prepare(model, context)
    assert prepared.flops == filter_pruning.SALIENCY_IMAGES * dense.train_flops


def test_the_ridge_correction_costs_dense_forward_passes_and_its_algebra(model: nn.Module) -> None:
    dense = count_flops(model, resolution=32).forward_flops
    context = context_for(model, ridge_repair=True)
    alone = replace(context, recipe=recipe_with(ridge_repair=True, batch_norm_repair=False))
    images = list(context.calibration(40))
    algebra: list[float] = []

    def correct(reductions: Sequence[Reduction]) -> Absorbing:
        algebra.append(fit_ridge(twin, reductions, images, head="fc").flops)
        return {}

    twin = copy.deepcopy(model)
    prune(
        twin,
        PruningPlan(ratio=0.5, criterion=Criterion.L2),
        head="fc",
        resolution=32,
        seed=1,
        correct=correct,
    )
    ridge = filter_pruning.prepare(copy.deepcopy(model), alone)
    assert ridge.flops == pytest.approx(40 * dense + algebra[0])
    both = filter_pruning.prepare(model, context)
    pruned = count_flops(model, resolution=32).forward_flops
    assert both.flops == pytest.approx(ridge.flops + 40 * pruned)


def test_what_a_failed_preparation_cost_is_told(model: nn.Module) -> None:
    dense = count_flops(model, resolution=32).train_flops
    nn.init.zeros_(model.get_parameter("fc.weight"))
    with pytest.raises(InfeasibleError, match="no gradient at any channel") as caught:
        filter_pruning.prepare(model, context_for(model, criterion="taylor"))
    assert caught.value.spent_flops == 40 * dense


def test_widths_are_multiples_of_what_the_device_likes(model: nn.Module) -> None:
    context = context_for(model, width_multiple=8, pruning_ratio=0.3, width_rule="all")
    filter_pruning.prepare(model, context)
    widths = {m.out_channels for m in model.modules() if isinstance(m, nn.Conv2d)}
    assert all(width % 8 == 0 for width in widths)


@pytest.mark.parametrize("criterion", list(Criterion))
def test_every_criterion_gives_the_same_model_twice(model: nn.Module, criterion: Criterion) -> None:
    again, images = copy.deepcopy(model), torch.randn(2, 3, 32, 32)
    structures = []
    for one in (model, again):
        context = context_for(one, criterion=criterion, scope="isomorphic", ridge_repair=True)
        structures.append(filter_pruning.prepare(one, context).structure)
    assert structures[0] == structures[1]
    assert torch.equal(model.eval()(images), again.eval()(images))


@pytest.mark.parametrize("ratio", [0, 0.0])
def test_a_dense_recipe_needs_no_other_settings(ratio: float) -> None:
    replace(EXAMPLE, settings={"pruning_ratio": ratio}).check()


@pytest.mark.parametrize("ratio", [0, 0.0, 0.95])
def test_sensible_settings_pass(ratio: float) -> None:
    EXAMPLE.but(settings={"pruning_ratio": ratio}).check()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"pruning_ratio": 1.0}, "pruning_ratio=1.0 must be less than 1"),
        ({"pruning_ratio": -0.1}, "pruning_ratio=-0.1 must be greater than or equal to 0"),
        ({"criterion": "l3"}, "criterion='l3' must be 'l1', 'l2', 'batch_norm_scale'"),
        ({"width_rule": 1}, "width_rule=1 must be 'inner' or 'all'"),
        ({"scope": "network"}, "scope='network' must be 'layer', 'global' or 'isomorphic'"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        EXAMPLE.but(settings=settings).check()


def test_a_pruned_recipe_needs_every_setting() -> None:
    ratio = replace(EXAMPLE, settings={"pruning_ratio": 0.5, "scope": "layer"})
    with pytest.raises(InputError, match="pruning_ratio=0.5 needs criterion, .*, ridge_repair as"):
        ratio.check()
    with pytest.raises(InputError, match="only a pruning_ratio of 0 needs no others"):
        ratio.check()
