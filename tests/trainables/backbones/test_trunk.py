"""Frozen trunks: found where features stand for the images, and nowhere else."""

from collections.abc import Callable

import pytest
import timm
import torch
from torch import Tensor, nn

from trainables.backbones.trunk import FrozenTrunk, find_trunk
from trainables.costs.flops import count_flops, trace_flops
from trainables.learning.freezing import freeze_below, train_mode


def frozen(model: nn.Module, *, trainable_depth: float = 0.0) -> nn.Module:
    freeze_below(model, trainable_depth=trainable_depth)
    train_mode(model)
    return model


def timm_model(name: str, **arguments: float) -> nn.Module:
    torch.manual_seed(0)
    model: nn.Module = timm.create_model(name, num_classes=4, **arguments)
    return model


class Tiny(nn.Module):
    """A user's own model without any norm, whose parts a test may replace."""

    def __init__(self, **parts: nn.Module) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)
        self.before = parts.get("before", nn.Identity())
        self.fc = nn.Linear(8, 4)
        self.after = parts.get("after", nn.Identity())

    def forward(self, images: Tensor) -> Tensor:
        pooled = self.before(self.conv(images).relu()).mean((2, 3))
        logits: Tensor = self.after(self.fc(pooled))
        return logits


class Twice(Tiny):
    """Looks at an image and its mirror image with one classifier."""

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images) + super().forward(images.flip(3))


class Scale(nn.Module):
    def forward(self, logits: Tensor) -> Tensor:
        return 3 * logits


@pytest.mark.parametrize(
    ("make", "shape"),
    [
        (lambda: timm_model("test_resnet"), (96,)),
        (lambda: timm_model("test_convnext"), (64,)),
        (lambda: timm_model("mobilenetv3_small_050"), (1024,)),
        (lambda: timm_model("dla46_c"), (256, 1, 1)),
        (lambda: timm_model("test_nfnet"), (192,)),
        (Tiny, (8,)),
    ],
    ids=["resnet", "convnext", "mobilenetv3", "convolution as head", "no norms", "user's own"],
)
def test_the_head_on_features_is_the_model(
    make: Callable[[], nn.Module], shape: tuple[int, ...]
) -> None:
    model = frozen(make())
    before = {name: value.clone() for name, value in model.state_dict().items()}
    trunk = find_trunk(model, resolution=64)
    assert trunk is not None
    assert trunk.feature_shape == shape
    images = torch.randn(3, 3, 64, 64)
    features = trunk.features(images)
    assert features.shape == (3, *shape)
    assert not features.requires_grad
    expected = model.eval()(images)
    torch.testing.assert_close(trunk.head(features).flatten(1), expected)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    whole = count_flops(model, resolution=64)
    head = trace_flops(trunk.head, input_shape=shape)
    assert head.train_flops == 2 * head.forward_flops, "its input needs no gradient"
    assert whole.train_flops - whole.forward_flops == head.train_flops - head.forward_flops


@pytest.mark.parametrize(
    "make",
    [
        lambda: frozen(timm_model("test_resnet"), trainable_depth=0.5),
        lambda: frozen(timm_model("test_resnet", drop_rate=0.2)),
        lambda: frozen(Tiny(before=nn.Dropout(0.5))),
        lambda: frozen(Tiny(before=nn.BatchNorm2d(8, affine=False))),
        lambda: frozen(Tiny(after=Scale())),
        lambda: frozen(Twice()),
        lambda: Tiny().requires_grad_(requires_grad=False),
    ],
    ids=[
        "more is trained",
        "dropout before the head",
        "a user's dropout",
        "a norm that follows its images",
        "something after the head",
        "two calls",
        "nothing is trained",
    ],
)
def test_where_features_are_not_all_of_it_there_is_none(make: Callable[[], nn.Module]) -> None:
    model = make()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    assert find_trunk(model, resolution=16) is None
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def trunk_of(model: nn.Module) -> FrozenTrunk:
    trunk = find_trunk(frozen(model), resolution=16)
    assert trunk is not None
    return trunk


def test_a_fingerprint_tells_trunks_apart_and_heads_not() -> None:
    def make(change: Callable[[Tiny], object] = lambda _: None) -> str:
        torch.manual_seed(3)
        model = Tiny()
        with torch.no_grad():
            change(model)
        return trunk_of(model).fingerprint()

    def stride(model: Tiny) -> None:
        model.conv.stride = (2, 2)

    assert make() == make()
    assert make() == make(lambda model: model.fc.weight.zero_())
    assert make() != make(lambda model: model.get_parameter("conv.bias")[0].add_(1e-6))
    assert make() != make(stride)
    assert make() != make(lambda model: model.register_buffer("more", torch.zeros(1)))
