"""WoodFisher: exact sparsity that lasts, less loss than by magnitude, and every product counted."""

from copy import deepcopy
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.known import known
from tests.trainables.contexts import make_context
from tests.trainables.mechanisms.sparse_models import WEIGHTS, zeros
from tests.trainables.methods.example_runs import RunOf
from tests.trainables.methods.examples.woodfisher import EXAMPLE, EXAMPLES
from tests.trainables.recipes import SMALL, make_recipe, make_trial, run
from trainables.backbones.build import normalisation
from trainables.backbones.layers import backbone_weights
from trainables.costs.flops import count_flops
from trainables.errors import InfeasibleError, InputError
from trainables.images.augment import model_inputs as normalised
from trainables.images.store import ImageStore
from trainables.mechanisms.masks import apply_masks
from trainables.mechanisms.sparsity import SparsityScope, keep_largest
from trainables.methods import woodfisher
from trainables.rungs import rung_levels

SETTINGS = dict(EXAMPLE.settings)
ASKED = round(0.9 * WEIGHTS)


def backbone() -> nn.Module:
    torch.manual_seed(0)
    made: nn.Module = timm.create_model("test_resnet", num_classes=5)
    return made


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
    apply_masks(by_magnitude, keep_largest(sizes, sparsity=0.9, scope=SparsityScope.GLOBAL))
    settings = SETTINGS | {"block_size": 32, "samples": 96}
    context = make_context(
        by_fisher,
        settings,
        recipe=make_recipe(method="woodfisher", settings=settings, resolution=16),
        labelled=lambda most: zip(images[:most].split(16), labels[:most].split(16), strict=True),
    )
    woodfisher.prepare(by_fisher, context)
    assert zeros(by_fisher) == zeros(by_magnitude) == ASKED
    assert loss(by_fisher) - loss(trained) < 0.5 * (loss(by_magnitude) - loss(trained))


@pytest.mark.parametrize("name", EXAMPLES.trained)
def test_every_rung_and_the_export_are_as_sparse_as_asked(run_of: RunOf, name: str) -> None:
    whole = run_of("woodfisher", name)
    for measured, model in whole.measured_models():
        assert zeros(model) == ASKED
        if name != "head":
            assert measured.updated_params == measured.params - ASKED, "zeros are not updated"
        assert known(measured.sparse_train_flops) < measured.train_flops
    assert zeros(whole.exported.module) == ASKED


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
        ({"scope": "block"}, "scope='block' must be 'layer' or 'global'"),
        ({"block_size": 0}, "block_size=0 must be greater than or equal to 1"),
        ({"dampening": 0.0}, "dampening=0.0 must be greater than 0"),
        ({"samples": 0}, "samples=0 must be greater than or equal to 1"),
    ],
)
def test_bad_settings_are_refused(settings: dict[str, Any], complaint: str) -> None:
    with pytest.raises(InputError, match=complaint):
        EXAMPLE.but(settings=settings).check()
