"""Filter pruning as a method: its settings, its cost and its structure."""

from collections.abc import Iterator
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from trainables.compute import count_flops
from trainables.errors import InputError
from trainables.method import MethodContext
from trainables.methods import filter_pruning

SETTINGS: dict[str, Any] = {
    "pruning_ratio": 0.5,
    "criterion": "l2",
    "width_rule": "inner",
    "scope": "layer",
}


def context_for(model: nn.Module, *, images: int = 40, **settings: Any) -> MethodContext:
    def batches(most: int) -> Iterator[Tensor]:
        noise = torch.randn((min(images, most), 3, 32, 32), generator=torch.manual_seed(0))
        yield from noise.split(16) if images else ()

    return MethodContext(
        settings=SETTINGS | settings,
        resolution=32,
        head="fc",
        seed=1,
        calibration=batches,
        forward_flops=lambda: count_flops(model, resolution=32).forward_flops,
    )


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
    assert prepared.flops == filter_pruning.CALIBRATION_IMAGES * pruned


def test_its_statistics_are_those_of_the_pruned_model(model: nn.Module) -> None:
    before = model.layer4[0].bn1.running_var.clone()
    filter_pruning.prepare(model, context_for(model))
    after = model.layer4[0].bn1.running_var
    assert len(after) < len(before)
    assert not torch.equal(after, torch.ones_like(after))


def test_a_ratio_of_zero_leaves_everything_and_costs_nothing(model: nn.Module) -> None:
    before = {name: value.clone() for name, value in model.state_dict().items()}
    prepared = filter_pruning.prepare(model, context_for(model, pruning_ratio=0))
    assert prepared.flops == 0
    after = model.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())
    filter_pruning.rebuild(model, prepared.structure, context_for(model, pruning_ratio=0))
    assert model.state_dict().keys() == before.keys()


@pytest.mark.parametrize("width_rule", ["inner", "all"])
def test_a_fresh_model_takes_the_structure_and_then_the_weights(
    model: nn.Module, width_rule: str
) -> None:
    context = context_for(model, width_rule=width_rule)
    prepared = filter_pruning.prepare(model, context)
    fresh = timm.create_model("test_resnet", num_classes=5)
    filter_pruning.rebuild(fresh, prepared.structure, context)
    fresh.load_state_dict(model.state_dict())
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(fresh.eval()(images), model.eval()(images))


def test_without_images_to_look_at_pruning_costs_nothing(model: nn.Module) -> None:
    assert filter_pruning.prepare(model, context_for(model, images=0)).flops == 0


@pytest.mark.parametrize("ratio", [0, 0.0, 0.95])
def test_sensible_settings_pass(ratio: float) -> None:
    filter_pruning.check(SETTINGS | {"pruning_ratio": ratio})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pruning_ratio": 1.0}, "pruning_ratio=1.0 must lie in \\[0, 1\\); 0 means dense"),
        ({"pruning_ratio": -0.1}, "pruning_ratio=-0.1 must lie"),
        ({"pruning_ratio": float("nan")}, "pruning_ratio=nan must lie"),
        ({"pruning_ratio": True}, "pruning_ratio=True must lie"),
        ({"pruning_ratio": "half"}, "pruning_ratio='half' must lie"),
        ({"criterion": "l3"}, "criterion='l3' must be one of 'l1', 'l2', 'random'"),
        ({"width_rule": 1}, "width_rule=1 must be one of 'inner', 'all'"),
        ({"scope": "network"}, "scope='network' must be one of 'layer', 'global'"),
        ({"rank": 4}, "has the settings pruning_ratio, .* and the recipe gives criterion, .*rank"),
    ],
)
def test_settings_that_make_no_sense_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        filter_pruning.check(SETTINGS | changes)


def test_missing_settings_are_refused() -> None:
    with pytest.raises(InputError, match="and the recipe gives none"):
        filter_pruning.check({})
