"""Ridge correction: the layers behind a pruned one learn to do without what is missing."""

import copy
from collections.abc import Sequence
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from tests.trainables.pruning.nets import Chain
from tests.trainables.pruning.plans import plan_of
from trainables.errors import InfeasibleError
from trainables.pruning import prune
from trainables.pruning.absorption import Absorbing
from trainables.pruning.channels.engine import find_groups
from trainables.pruning.reductions import Reduction, dropped
from trainables.pruning.ridge import PENALTY, fit_ridge


def noise(count: int = 16, *, side: int = 8) -> Tensor:
    return torch.randn(count, 3, side, side, generator=torch.manual_seed(0), dtype=torch.float64)


def reduced(model: nn.Module, name: str, kept: Sequence[int]) -> tuple[Reduction, ...]:
    graph = find_groups(model, resolution=16, head=["head"])
    (group,) = [group for group in graph.groups if name in group.producers]
    return (dropped(group, torch.tensor(kept)),)


def read_by_second(model: nn.Module, images: Tensor) -> Tensor:
    """[channels, places]: what the layer `second` reads."""
    seen: list[Tensor] = []
    second = model.get_submodule("second")
    hook = second.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    model(images)
    hook.remove()
    return seen[0].detach().transpose(0, 1).flatten(1)


def chain(between: nn.Module) -> Chain:
    torch.manual_seed(0)
    model = Chain(copy.deepcopy(between))
    for module in model.between.modules():  # made when the tests were collected, without a seed
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            module.reset_parameters()
    return model.double().eval()


def pruned(model: nn.Module, images: Tensor, *, corrected: bool, **plan: Any) -> None:
    def correct(reductions: Sequence[Reduction]) -> Absorbing:
        return fit_ridge(model, reductions, [images], head="head").absorbing

    prune(
        model,
        plan_of(**plan),
        head="head",
        resolution=16,
        seed=0,
        correct=correct if corrected else None,
    )


def test_it_is_the_ridge_regression_on_what_the_layer_reads() -> None:
    model, images, kept = chain(nn.BatchNorm2d(8)), noise(), [0, 2, 3, 7]
    ridge = fit_ridge(model, reduced(model, "first", kept), images.split(5), head="head")
    values = read_by_second(model, images)
    gram = values @ values.T
    own = gram[kept][:, kept]
    penalty = PENALTY * own.diagonal().mean() * torch.eye(4, dtype=torch.float64)
    (found,) = ridge.absorbing["second"]
    assert list(ridge.absorbing) == ["second"]
    assert torch.allclose(found, gram[:, kept] @ torch.linalg.inv(own + penalty))


def test_a_batch_that_does_not_fit_into_memory_counts_as_its_halves() -> None:
    model, images = chain(nn.BatchNorm2d(8)), noise()
    reductions = reduced(model, "first", [0, 2, 3, 7])
    rich = fit_ridge(model, reductions, images.split(4), head="head")

    def run_out(_head: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        if len(arguments[0]) > 5:
            raise torch.OutOfMemoryError("too many images")

    model.head.register_forward_pre_hook(run_out)
    poor = fit_ridge(model, reductions, [images], head="head")
    assert torch.equal(poor.absorbing["second"][0], rich.absorbing["second"][0])
    assert poor.flops == rich.flops


def test_its_cost_is_that_of_its_algebra() -> None:
    model = chain(nn.Identity())
    ridge = fit_ridge(model, reduced(model, "first", [0, 1, 2]), noise(10).split(4), head="head")
    places, rest = 10 * 8 * 8, 12 * 9
    algebra = 2 / 3 * 3**3 + 2 * 8 * 3**2
    assert ridge.flops == pytest.approx(2 * 8 * 3 * places + algebra + 2 * 8 * 3 * rest)


def test_large_maps_are_sampled_evenly() -> None:
    model = chain(nn.Identity())
    ridge = fit_ridge(model, reduced(model, "first", [0]), [noise(2, side=24)], head="head")
    products = 2 * 8 * 1 * (2 * 8 * 8)  # 24 × 24 pixels, of which 8 × 8 are looked at
    assert ridge.flops == pytest.approx(products + 2 / 3 + 2 * 8 + 2 * 8 * 12 * 9)


def test_combinations_of_channels_that_stay_are_recovered() -> None:
    class Mixed(Chain):
        def forward(self, images: Tensor) -> Tensor:
            maps = self.second(self.between(self.first(images)))  # nothing in between but linear
            logits: Tensor = self.head(maps.mean((2, 3)))
            return logits

    torch.manual_seed(0)
    model = Mixed(nn.Identity()).double().eval()
    with torch.no_grad():
        for tensor in model.first.parameters():
            tensor[4:] *= 1e-2  # the smaller half, which goes
            tensor[4] = 0.03 * tensor[0] - 0.01 * tensor[1]
            tensor[5:] = 0.02 * tensor[1:4] - 0.02 * tensor[:1]
    images = noise(64)
    expected = model(images)
    plain, mended = copy.deepcopy(model), model
    pruned(plain, images, corrected=False)
    pruned(mended, images, corrected=True)
    scale = expected.std()
    assert (mended(images) - expected).std() < 1e-3 * scale
    assert (mended(images) - expected).std() < 0.1 * (plain(images) - expected).std()


@pytest.mark.parametrize(
    "between",
    [
        nn.BatchNorm2d(8),
        nn.Conv2d(8, 8, 3, padding=1, groups=8),
        nn.Conv2d(8, 8, 3, padding=1, groups=2),
        nn.ConvTranspose2d(8, 8, 2, stride=2),
        nn.Sequential(nn.GroupNorm(2, 8), nn.MaxPool2d(2)),
    ],
    ids=["norm", "depthwise", "grouped", "transposed", "group norm and pool"],
)
def test_what_is_left_comes_nearer_to_the_dense_outputs(between: nn.Module) -> None:
    dense = chain(between)
    images, unseen = noise(64), torch.randn(64, 3, 8, 8, dtype=torch.float64)
    errors = {}
    for corrected in (False, True):
        model = copy.deepcopy(dense)
        pruned(model, images, corrected=corrected)
        errors[corrected] = (model(unseen) - dense(unseen)).square().mean().item()
    assert errors[True] < 0.7 * errors[False]


class Flat(nn.Module):
    """A linear layer reads a flattened map, as in VGG: 16 places of each channel."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, stride=4, padding=1)
        self.second = nn.Linear(8 * 16, 10)
        self.head = nn.Linear(10, 5)

    def forward(self, images: Tensor) -> Tensor:
        flat = torch.relu(self.first(images)).flatten(1)
        logits: Tensor = self.head(torch.relu(self.second(flat)))
        return logits


def test_the_places_of_a_flattened_map_share_their_channels_correction() -> None:
    torch.manual_seed(0)
    model = Flat().double().eval()
    images = noise(32, side=16)
    ridge = fit_ridge(model, reduced(model, "first", [0, 1, 2, 3]), [images], head="head")
    (found,) = ridge.absorbing["second"]
    assert found.shape == (8, 4)
    assert torch.allclose(found[:4], torch.eye(4, dtype=torch.float64), atol=0.05)
    expected, plain = model(images), copy.deepcopy(model)
    pruned(plain, images, corrected=False)
    pruned(model, images, corrected=True)
    assert model.second.in_features == 64
    assert (model(images) - expected).std() < (plain(images) - expected).std()


def test_channels_that_are_merged_are_fitted_too() -> None:
    dense, images = chain(nn.BatchNorm2d(8)), noise(64)
    errors = {}
    for corrected in (False, True):
        model = copy.deepcopy(dense)
        pruned(model, images, corrected=corrected, criterion="folding")
        errors[corrected] = (model(images) - dense(images)).square().mean().item()
    assert errors[True] < errors[False]


def test_the_random_classifier_is_not_corrected() -> None:
    model = chain(nn.Identity())
    ridge = fit_ridge(model, reduced(model, "second", [0, 1]), [noise()], head="head")
    assert not ridge.absorbing
    assert ridge.flops == 0
    corrected = fit_ridge(model, reduced(model, "second", [0, 1]), [noise()])
    assert list(corrected.absorbing) == ["head"]


def test_without_images_nothing_changes() -> None:
    model = chain(nn.BatchNorm2d(8))
    plain = copy.deepcopy(model)
    ridge = fit_ridge(model, reduced(model, "first", [0]), [], head="head")
    assert (dict(ridge.absorbing), ridge.flops) == ({}, 0)
    pruned(plain, noise(), corrected=False)
    pruned(model, noise(0), corrected=True)
    for mine, theirs in zip(model.parameters(), plain.parameters(), strict=True):
        assert torch.equal(mine, theirs)


def test_the_model_is_only_looked_at() -> None:
    model = chain(nn.BatchNorm2d(8)).train()
    model.between.eval()
    before = copy.deepcopy(model.state_dict())
    fit_ridge(model, reduced(model, "first", [0]), [noise()], head="head")
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert (model.training, model.between.training) == (True, False)
    assert all(not module._forward_pre_hooks for module in model.modules())


def test_channels_that_never_fire_leave_the_weights_alone() -> None:
    model = chain(nn.Identity())
    with torch.no_grad():
        model.get_parameter("first.bias")[:2] = -1e3
    ridge = fit_ridge(model, reduced(model, "first", [0, 1]), [noise()], head="head")
    (found,) = ridge.absorbing["second"]
    assert torch.equal(found, torch.eye(8, dtype=torch.float64)[:, :2])


def test_values_that_are_not_finite_are_refused_by_name() -> None:
    model = chain(nn.Identity())
    with torch.no_grad():
        model.first.weight[0] = torch.inf
    with pytest.raises(InfeasibleError, match="second reads values that are not finite"):
        fit_ridge(model, reduced(model, "first", [0, 1]), [noise()], head="head")


@pytest.mark.parametrize("name", ["test_resnet", "test_efficientnet"])
@pytest.mark.parametrize("width_rule", ["inner", "all"])
def test_whole_networks_are_corrected(name: str, width_rule: str) -> None:
    torch.manual_seed(0)
    dense = timm.create_model(name, num_classes=5).eval()
    images = noise(32, side=32).float()
    head = next(n for n, m in dense.named_modules() if m is dense.get_classifier())
    misses = {}
    for corrected in (False, True):
        model = copy.deepcopy(dense)

        def correct(reductions: Sequence[Reduction], model: nn.Module = model) -> Absorbing:
            return fit_ridge(model, reductions, [images], head=head).absorbing

        prune(
            model,
            plan_of(width_rule=width_rule),
            head=head,
            resolution=32,
            seed=0,
            correct=correct if corrected else None,
        )
        if width_rule == "inner":
            found, expected = model.forward_features(images), dense.forward_features(images)
            misses[corrected] = (found - expected).square().mean().item()
        assert model(images).isfinite().all()
    if width_rule == "inner":
        assert misses[True] < misses[False]
