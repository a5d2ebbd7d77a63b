"""What a backbone must take and give, and the sentence for each breach."""

from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from tests.trainables.backbones.cifar_resnet import cifar_resnet
from trainables.backbones.contract import check_contract
from trainables.costs.flops import count_flops
from trainables.errors import InputError


class Returns(nn.Module):
    """Returns what is asked of it."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.convolution = nn.Conv2d(3, 8, 3)
        self.head = nn.Linear(8, 5)

    def forward(self, images: Tensor) -> Any:
        maps = self.convolution(images)
        logits = self.head(maps.mean((2, 3)))
        match self.kind:
            case "dict":
                return {"logits": logits, "maps": maps}
            case "list":
                return [logits, maps]
            case "tuple in training":
                return (logits, logits) if self.training else logits
            case "nothing":
                return None
            case "maps":
                return logits[..., None, None]
            case "one vector":
                return logits[0]
        return logits


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("dict", "Returns returns a dict \\(logits, maps\\) in eval mode, .* logits alone"),
        ("list", "returns a list of 2 in eval mode"),
        ("tuple in training", "returns a tuple of 2 in train mode"),
        ("nothing", "returns a NoneType in eval mode"),
        ("maps", "returns logits of shape \\[2, 5, 1, 1\\] for 2 images and 5 classes"),
        ("one vector", "returns logits of shape \\[5\\] for 2 images"),
    ],
)
def test_what_is_no_tensor_of_logits_is_refused_in_a_sentence(kind: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        check_contract(Returns(kind), classes=5, resolution=16)


def test_logits_of_other_classes_are_refused() -> None:
    with pytest.raises(InputError, match="for 2 images and 7 classes .* heeds num_classes"):
        check_contract(Returns("logits"), classes=7, resolution=16)


@pytest.mark.parametrize("channels", [1, 4, 6])
def test_a_model_for_images_of_other_channels_is_told_by_trying(channels: int) -> None:
    model = timm.create_model("test_resnet", num_classes=5, in_chans=channels)
    word = "1 channel" if channels == 1 else f"{channels} channels"
    told = f"it takes images of {word}, and images here have 3 channels \\(RGB\\)"
    with pytest.raises(InputError, match=told):
        check_contract(model, classes=5, resolution=32)
    with pytest.raises(InputError, match=told):
        count_flops(model, resolution=32)


def test_a_size_that_the_model_does_not_accept_is_told_from_other_reasons() -> None:
    model = timm.create_model("test_convnext", num_classes=5)
    with pytest.raises(InputError, match="at 8 pixels does not run .*it does run at "):
        check_contract(model, classes=5, resolution=8)


@pytest.mark.parametrize(
    "model", [Returns("logits"), cifar_resnet(5), timm.create_model("test_vit", num_classes=5)]
)
def test_a_backbone_that_keeps_the_contract_is_left_alone(model: nn.Module) -> None:
    model.train()
    resolution = 160 if "VisionTransformer" in type(model).__name__ else 32
    before = {name: value.clone() for name, value in model.state_dict().items()}
    check_contract(model, classes=5, resolution=resolution)
    assert all(module.training for module in model.modules())
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
