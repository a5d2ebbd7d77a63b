"""The FLOP meter against hand-computed costs and the shares measured for timm models."""

import copy
from collections.abc import Callable

import pytest
import timm
import torch
from torch import nn
from torch.nn.utils import parametrize

from tests.benchmarks.flop_counts import LAYER_MACS, compare_backward, compare_forward
from trainables.backbones.layers import backbone_weights
from trainables.costs.flops import StepCost, count_flops, layer_flops
from trainables.errors import InputError


class NeedsValues(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        maps: torch.Tensor = self.conv(images)
        return maps * float(images.mean().item())


class TwoHeads(nn.Module):
    """A second output in train mode, as with auxiliary classifiers."""

    def __init__(self) -> None:
        super().__init__()
        self.main = nn.Conv2d(3, 4, 1, bias=False)
        self.auxiliary = nn.Conv2d(3, 4, 1, bias=False)

    def forward(self, images: torch.Tensor) -> object:
        if self.training:
            return {"main": self.main(images), "rest": [self.auxiliary(images)]}
        return self.main(images)


def small_net() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 5),
    )


STEM = 2 * (4 * 4) * (3 * 3) * 3 * 8  # at 8 × 8 pixels: 4 × 4 places
HEAD = 2 * 8 * 5


def test_a_small_net_costs_what_the_hand_computes() -> None:
    cost = count_flops(small_net(), resolution=8)
    # the images need no gradient: the stem's backward is its weight gradient alone
    assert cost == StepCost(forward_flops=STEM + HEAD, train_flops=2 * STEM + 3 * HEAD)
    assert cost.inference_flops == cost.forward_flops


@pytest.mark.parametrize("groups", [1, 4, 8])
@pytest.mark.parametrize("kind", [nn.Conv2d, nn.ConvTranspose2d])
def test_backward_costs_two_forwards_whatever_the_groups(groups: int, kind: type) -> None:
    first = nn.Conv2d(3, 8, 1, bias=False)
    grouped = kind(8, 8, 3, padding=1, groups=groups)
    cost = count_flops(nn.Sequential(first, grouped), resolution=6)
    first_flops = 2 * 36 * 3 * 8
    grouped_flops = 2 * 36 * 9 * 8 * 8 // groups
    assert cost.forward_flops == first_flops + grouped_flops
    assert cost.train_flops == 2 * first_flops + 3 * grouped_flops


def test_frozen_weights_cost_no_weight_gradient_and_a_frozen_prefix_no_backward() -> None:
    net = nn.Sequential(*(nn.Conv2d(3, 3, 1, bias=False) for _ in range(3)))
    one = 2 * 16 * 3 * 3
    net.get_parameter("1.weight").requires_grad = False
    assert count_flops(net, resolution=4).train_flops == one * (2 + 2 + 3)
    net.get_parameter("0.weight").requires_grad = False
    assert count_flops(net, resolution=4).train_flops == one * (1 + 1 + 2)


def test_a_frozen_model_costs_its_forward() -> None:
    net = small_net().requires_grad_(requires_grad=False)
    cost = count_flops(net, resolution=8)
    assert cost.train_flops == cost.forward_flops == STEM + HEAD


def test_norms_in_mixed_modes_at_one_pixel_are_counted_and_left_as_they_were() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.BatchNorm2d(4)).train()
    net[2].eval()
    before = copy.deepcopy(net.state_dict())
    assert count_flops(net, resolution=1).train_flops == 2 * 2 * 3 * 4
    assert [m.training for m in net] == [True, True, False]
    assert all(torch.equal(before[k], v) for k, v in net.state_dict().items())
    assert all(p.grad is None and p.device.type == "cpu" for p in net.parameters())


def test_train_only_branches_count_in_the_training_step_alone() -> None:
    one = 2 * 4 * 3 * 4
    cost = count_flops(TwoHeads(), resolution=2)
    assert cost == StepCost(forward_flops=one, train_flops=2 * 2 * one)


def test_counting_works_under_no_grad_and_inference_mode() -> None:
    for width, context in enumerate((torch.no_grad(), torch.inference_mode()), start=5):
        net = small_net().append(nn.Linear(5, width))  # of a structure not counted before
        with context:
            assert count_flops(net, resolution=8).train_flops > 2 * STEM


def test_models_of_equal_shapes_and_other_strides_are_told_apart() -> None:
    coarse, fine = (nn.Sequential(nn.Conv2d(3, 4, 2, stride=s)) for s in (2, 1))
    assert count_flops(coarse, resolution=4).forward_flops == 2 * 4 * 4 * 3 * 4
    assert count_flops(fine, resolution=4).forward_flops == 2 * 9 * 4 * 3 * 4


def test_equal_structures_are_counted_once() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 1))
    first = count_flops(net, resolution=4)
    assert count_flops(copy.deepcopy(net), resolution=4) is first


def test_a_model_that_reads_values_is_refused_in_a_sentence() -> None:
    with pytest.raises(InputError, match=r"NeedsValues at 8 pixels cannot be counted"):
        count_flops(NeedsValues(), resolution=8)


def test_a_size_that_makes_no_sense_is_refused() -> None:
    with pytest.raises(InputError, match="resolution=0 must be at least 1 pixel"):
        count_flops(small_net(), resolution=0)


def test_resnet50_shares_of_forward() -> None:
    model = timm.create_model("resnet50")

    def share(*trainable: str) -> float:
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(any(word in name for word in trainable))
        cost = count_flops(model, resolution=224)
        assert cost.forward_flops / 2e9 == pytest.approx(4.089, abs=0.001)
        return cost.train_flops / cost.forward_flops

    assert share("") == pytest.approx(2.971, abs=0.001)
    assert share("bn", "downsample.1", "fc") == pytest.approx(1.971, abs=0.001)
    assert share("layer4", "fc") == pytest.approx(1.346, abs=0.001)
    assert share("fc") == pytest.approx(1.000, abs=0.001)


@pytest.mark.parametrize(
    ("name", "forward_gmacs"), [("regnety_002", 0.1995), ("efficientnet_b0", 0.3858)]
)
def test_grouped_models_cost_about_three_forwards(name: str, forward_gmacs: float) -> None:
    cost = count_flops(timm.create_model(name), resolution=224)
    assert cost.forward_flops / 2e9 == pytest.approx(forward_gmacs, abs=0.0005)
    assert 2.9 < cost.train_flops / cost.forward_flops < 3.0


@pytest.mark.parametrize("name", ["resnet18", "mobilenetv2_100", "convnext_atto"])
def test_an_independent_counter_agrees_to_the_last_multiply_accumulate(name: str) -> None:
    assert compare_forward(name)["ratio"] == 1


@pytest.mark.parametrize("frozen", range(len(LAYER_MACS) + 1))
def test_a_step_with_a_frozen_prefix_costs_what_the_hand_computes(frozen: int) -> None:
    row = compare_backward(frozen)
    assert row["meter"] == row["by_hand"]


class LowRank(nn.Module):
    """Adds a product of two factors to a weight [O, I, 3, 3]."""

    def __init__(self, weight: torch.Tensor, rank: int) -> None:
        super().__init__()
        self.left = nn.Parameter(torch.zeros(len(weight), rank))
        self.right = nn.Parameter(torch.zeros(rank, weight[0].numel()))

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        return weight + (self.left @ self.right).view_as(weight)


def test_a_parametrised_weight_is_paid_for_once_a_step_whatever_the_batch() -> None:
    def model() -> nn.Sequential:
        return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.Conv2d(8, 4, 1))

    plain, adapted, rank = model(), model(), 2
    factors = LowRank(adapted.get_parameter("0.weight"), rank)
    parametrize.register_parametrization(adapted[0], "weight", factors)
    expected = count_flops(plain, resolution=6)
    cost = count_flops(adapted, resolution=6)
    assert cost.forward_flops == expected.forward_flops
    assert cost.train_flops == expected.train_flops
    assert expected.fixed_flops == 0
    assert cost.fixed_flops == 3 * 2 * 8 * rank * 27, "forward and the gradients of both factors"


@pytest.mark.parametrize("name", ["test_resnet", "mobilenetv2_050", "test_efficientnet"])
def test_the_layers_costs_add_up_to_the_models(name: str) -> None:
    model = timm.create_model(name, num_classes=4)
    model.requires_grad_(requires_grad=False)
    first, *_, last = backbone_weights(model)
    for trained in (first, last):
        model.get_parameter(trained).requires_grad_()
        layers, whole = layer_flops(model, resolution=32), count_flops(model, resolution=32)
        assert sum(c.forward_flops for c in layers.values()) == whole.forward_flops
        assert sum(c.train_flops for c in layers.values()) == whole.train_flops
        assert set(backbone_weights(model)) < set(layers)


def test_a_transposed_convolutions_weights_meet_every_place_of_its_input() -> None:
    model = nn.Sequential(nn.ConvTranspose2d(3, 8, 2, stride=2, groups=1), nn.Conv2d(8, 2, 1))
    layers, whole = layer_flops(model, resolution=5), count_flops(model, resolution=5)
    assert layers["0.weight"].forward_flops == 2 * 25 * 3 * 8 * 4
    assert sum(c.train_flops for c in layers.values()) == whole.train_flops


class Products(nn.Module):
    """Products with a vector, and sums of products, which layers never call."""

    def __init__(self, product: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.product = product
        self.matrix = nn.Parameter(torch.zeros(5, 192))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.product(self.matrix, images)


@pytest.mark.parametrize(
    ("product", "flops"),
    [
        (lambda matrix, images: matrix @ images[0].flatten(), 2 * 5 * 192),
        (lambda matrix, images: matrix[0] @ images[0].flatten(), 2 * 192),
        (
            lambda matrix, images: torch.addmv(matrix[:, 0], matrix, images[0].flatten()),
            2 * 5 * 192,
        ),
        (
            lambda matrix, images: torch.addbmm(
                matrix[:2, :5], images[0, :, :2], matrix[None].view(15, 8, 8)[:3, :, :5]
            ),
            2 * 3 * 2 * 8 * 5,
        ),
    ],
    ids=["matrix and vector", "vectors", "added", "summed over a batch"],
)
def test_products_that_pytorch_has_no_formula_for_are_counted(
    product: Callable[[torch.Tensor, torch.Tensor], torch.Tensor], flops: int
) -> None:
    cost = count_flops(Products(product), resolution=8)
    assert cost.forward_flops == flops / 2, "a batch of two was passed"
    assert cost.uncounted == ()


@torch.library.custom_op("prunetune_tests::halved", mutates_args=())
def halved(images: torch.Tensor) -> torch.Tensor:
    """Does work that no counter knows."""
    return images / 2


@halved.register_fake
def _halved_shape(images: torch.Tensor) -> torch.Tensor:
    return torch.empty_like(images)


class CallsALibrary(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(3, 4, 1, bias=False)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        maps: torch.Tensor = self.convolution(halved(images))
        return maps


def test_work_that_nobody_can_count_is_named(caplog: pytest.LogCaptureFixture) -> None:
    cost = count_flops(CallsALibrary(), resolution=2)
    assert cost.forward_flops == 2 * 4 * 3 * 4
    assert cost.uncounted == ("prunetune_tests.halved",)
    assert "CallsALibrary uses prunetune_tests.halved, whose work is not known" in caplog.text
