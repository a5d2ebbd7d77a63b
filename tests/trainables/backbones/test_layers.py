"""The order of a model's layers, and its head."""

from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from tests.trainables.backbones.cifar_resnet import cifar_resnet
from trainables.backbones.layers import (
    backbone_weights,
    below_head,
    classifier,
    classifier_name,
    is_within,
    layer_of_parameter,
    norm_parameters,
    zero_share,
)
from trainables.errors import InputError

HEAD_OF_CONVNEXT = ("head.fc.weight", "head.fc.bias")


def owners(layers: dict[str, int]) -> list[list[str]]:
    """The modules or numbered blocks of each layer, input first."""
    rows: list[list[str]] = [[] for _ in range(max(layers.values()) + 1)]
    for name, layer in layers.items():
        first, *rest = name.split(".")
        short = f"{first}.{rest[0]}" if first.startswith(("layer", "blocks")) else first
        if short not in rows[layer]:
            rows[layer].append(short)
    return rows


@pytest.mark.parametrize(
    ("model", "name", "kind"),
    [
        ("test_resnet", "fc", nn.Linear),
        ("test_efficientnet", "classifier", nn.Linear),
        ("mobilenetv3_small_050", "classifier", nn.Linear),
        ("test_convnext", "head.fc", nn.Linear),
        ("test_byobnet", "head.fc", nn.Linear),
        ("dla34", "fc", nn.Conv2d),
    ],
)
def test_the_head_is_what_timm_says(model: str, name: str, kind: type[nn.Module]) -> None:
    made = timm.create_model(model, num_classes=7)
    assert classifier_name(made) == name
    assert classifier(made) is made.get_classifier()
    assert isinstance(classifier(made), kind)


class Defined(nn.Module):
    """Layers that run in another order than they are defined in, and one that does not run."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.logits = nn.Linear(12, 7)
        self.stem = nn.Conv2d(3, 12, 3)
        self.gate = nn.Linear(12, 12)
        self.spare = nn.Linear(12, 7)
        self.last = nn.Conv2d(12, 7, 1)

    def forward(self, images: Tensor) -> Any:
        maps = self.stem(images)
        pooled = maps.mean((2, 3))
        gated = pooled * self.gate(pooled).sigmoid()
        if self.kind == "trained aside" and self.training:
            return self.logits(gated) + self.spare(pooled)
        if self.kind == "two":
            return self.logits(gated) + self.spare(gated)
        if self.kind == "convolution":
            return self.last(maps * self.gate(pooled)[..., None, None]).mean((2, 3))
        logits = self.logits(gated)
        return logits.log_softmax(-1) if self.kind == "after" else logits


@pytest.mark.parametrize("kind", ["plain", "after", "trained aside"])
def test_the_head_of_a_users_model_makes_the_logits_wherever_it_is_defined(kind: str) -> None:
    model = Defined(kind).train()
    assert classifier_name(model) == "logits"
    assert model.training
    frozen = {name for name, _ in below_head(model).items()}
    assert {"gate.weight", "spare.weight"} <= frozen


@pytest.mark.parametrize(("kind", "makers"), [("two", "logits and spare"), ("convolution", "last")])
def test_a_head_that_is_no_one_linear_layer_is_refused(kind: str, makers: str) -> None:
    with pytest.raises(InputError, match=f"makes its logits by {makers}, .* get_classifier"):
        classifier_name(Defined(kind))


def test_of_a_model_that_runs_at_no_usual_size_the_last_linear_layer_is_the_head() -> None:
    assert classifier_name(cifar_resnet(4)) == "linear"
    net = nn.Sequential(nn.Flatten(), nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2), nn.Dropout())
    assert classifier_name(net) == "3"


@pytest.mark.parametrize(
    ("name", "inside"),
    [
        ("fc", True),
        ("fc.weight", True),
        ("fc.parametrizations.weight.original", True),
        ("fc2.weight", False),
        ("layer1.fc.weight", False),
    ],
)
def test_a_name_is_within_its_module_alone(name: str, inside: bool) -> None:
    assert is_within(name, "fc") is inside


def test_all_but_the_classifiers_parameters_lie_below_the_head() -> None:
    made = timm.create_model("test_convnext", num_classes=7)
    names = list(below_head(made))
    assert names == [n for n, _ in made.named_parameters() if n not in HEAD_OF_CONVNEXT]
    assert "head.norm.weight" in names


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (nn.Sequential(nn.Conv2d(3, 4, 1), nn.Flatten()), "Sequential has no classifier"),
        (nn.Linear(3, 4), "Linear has no classifier"),
    ],
)
def test_a_model_without_a_head_is_refused(model: nn.Module, message: str) -> None:
    with pytest.raises(InputError, match=message):
        classifier_name(model)


def test_a_distilled_model_has_a_head_too_many() -> None:
    with pytest.raises(InputError, match="EfficientFormer has 2 classifiers"):
        classifier_name(timm.create_model("efficientformer_l1", num_classes=7))


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        (
            timm.create_model("test_resnet"),
            [
                ["conv1", "bn1"],
                ["layer1.0"],
                ["layer2.0"],
                ["layer3.0"],
                ["layer4.0"],
                ["fc"],
            ],
        ),
        (
            timm.create_model("test_efficientnet"),
            [
                ["conv_stem", "bn1"],
                *([f"blocks.{i}"] for i in range(4)),
                ["blocks.4", "conv_head", "bn2"],
                ["classifier"],
            ],
        ),
        (
            cifar_resnet(4, depth=14),
            [
                ["conv1", "bn1"],
                *([f"layer{stage}.{block}"] for stage in (1, 2, 3) for block in (0, 1)),
                ["linear"],
            ],
        ),
        (
            nn.Sequential(
                nn.Conv2d(3, 4, 1),
                nn.BatchNorm2d(4),
                nn.Conv2d(4, 4, 1),
                nn.BatchNorm2d(4),
                nn.Flatten(),
                nn.Linear(4, 2),
            ),
            [["0", "1"], ["2", "3"], ["5"]],
        ),
    ],
    ids=["resnet", "efficientnet", "user's own", "a sequence"],
)
def test_layers_go_from_the_input_to_the_head(model: nn.Module, expected: list[list[str]]) -> None:
    assert owners(layer_of_parameter(model)) == expected


def test_the_norm_before_a_head_is_a_layer_of_the_trunk() -> None:
    layers = layer_of_parameter(timm.create_model("test_convnext"))
    last = max(layers.values())
    assert {name for name, layer in layers.items() if layer == last} == {
        "head.fc.weight",
        "head.fc.bias",
    }
    assert layers["head.norm.weight"] < last


@pytest.mark.parametrize("name", ["mobilenetv3_small_050", "resnetv2_18", "regnetx_002"])
def test_every_parameter_has_a_layer_and_no_number_is_left_out(name: str) -> None:
    model = timm.create_model(name, num_classes=3)
    layers = layer_of_parameter(model)
    assert list(layers) == [name for name, _ in model.named_parameters()]
    assert set(layers.values()) == set(range(max(layers.values()) + 1))
    assert layers[next(iter(layers))] == 0


def test_the_norms_parameters_are_those_that_are_no_weights_here() -> None:
    model = timm.create_model("test_resnet", num_classes=7)
    vectors = {name for name, p in model.named_parameters() if p.ndim == 1}
    assert norm_parameters(model) == vectors - {"fc.bias"}


def test_weights_that_are_computed_from_others_are_no_weights_of_the_backbone() -> None:
    wrapped = nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 4, 1))
    old = nn.utils.spectral_norm(nn.Conv2d(4, 4, 1))
    pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    model = nn.Sequential(wrapped, old, nn.Conv2d(4, 4, 1), pool, nn.Linear(4, 2))
    assert set(backbone_weights(model)) == {"2.weight"}
    assert zero_share(model) == 0


def test_the_share_of_zeros_leaves_head_norms_and_biases_out() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 8), nn.Linear(8, 2)
    )
    assert zero_share(model) == 0
    with torch.no_grad():
        model.get_parameter("4.weight").zero_()
        model.get_parameter("1.weight").zero_()
        model.get_parameter("0.bias").zero_()
        model.get_parameter("0.weight")[0] = 0
    assert zero_share(model) == 3 / (12 + 32)
    assert zero_share(nn.Sequential(nn.Flatten(), nn.Linear(3, 2))) == 0
