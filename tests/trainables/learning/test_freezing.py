"""Freezing: which layers are trained at which depth, and their modes."""

import pytest
import timm
from torch import nn

from tests.trainables.backbones.cifar_resnet import cifar_resnet
from trainables.learning.freezing import freeze_below, train_mode


def trained(model: nn.Module) -> set[str]:
    """The first names of the parameters that are trained."""
    return {name.partition(".")[0] for name, p in model.named_parameters() if p.requires_grad}


@pytest.mark.parametrize(
    ("depth", "expected"),
    [
        (0.0, {"fc"}),
        (0.2, {"fc", "layer4"}),
        (0.4, {"fc", "layer4", "layer3"}),
        (0.5, {"fc", "layer4", "layer3"}),
        (1.0, {"fc", "layer4", "layer3", "layer2", "layer1", "conv1", "bn1"}),
    ],
)
def test_depth_counts_layers_from_the_head(depth: float, expected: set[str]) -> None:
    model = timm.create_model("test_resnet")
    freeze_below(model, trainable_depth=depth)
    assert trained(model) == expected


def test_a_deeper_share_thaws_what_a_smaller_one_froze() -> None:
    model = cifar_resnet(4)
    freeze_below(model, trainable_depth=0.0)
    assert trained(model) == {"linear"}
    freeze_below(model, trainable_depth=1.0)
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_frozen_layers_are_in_eval_mode_and_trained_ones_are_not() -> None:
    model = timm.create_model("test_resnet", drop_path_rate=0.5, drop_rate=0.1)
    freeze_below(model, trainable_depth=0.4)
    train_mode(model)
    for name, module in model.named_modules():
        if name.startswith(("conv1", "bn1", "layer1", "layer2")):
            assert not module.training, name  # batch norms and stochastic depth alike
        if name.startswith(("layer3", "layer4", "fc")):
            assert module.training, name


def test_train_mode_undoes_eval_mode() -> None:
    model = timm.create_model("test_resnet").eval()
    train_mode(model)
    assert all(module.training for module in model.modules())
