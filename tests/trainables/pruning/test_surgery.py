"""Cuts of single layers."""

import copy

import pytest
import torch
from torch import Tensor, nn

from tests.trainables.backbones.cifar_resnet import CifarResNet
from trainables.errors import InfeasibleError, InputError
from trainables.pruning import surgery
from trainables.pruning.channels.groups import Side
from trainables.pruning.structure import Cut, Resize


def cut(name: str, side: Side, width: int, *kept: int) -> Cut:
    return Cut(name=name, side=side, width=width, kept=kept)


def masked_inputs(images: Tensor, kept: tuple[int, ...]) -> Tensor:
    mask = torch.zeros(images.shape[1])
    mask[list(kept)] = 1
    return images * mask.view(-1, *[1] * (images.dim() - 2))


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(8, 12, 3),
        nn.Conv2d(8, 12, 3, groups=2, bias=False),
        nn.ConvTranspose2d(8, 12, 3),
        nn.Linear(8, 12),
    ],
    ids=["conv", "grouped", "transposed", "linear"],
)
def test_a_cut_layer_computes_the_kept_outputs_of_the_kept_inputs(layer: nn.Module) -> None:
    layer = copy.deepcopy(layer)
    kept_in, kept_out = (0, 3, 4, 7), (1, 2, 8, 11)  # other positions in each group
    inputs = torch.randn(2, 8) if isinstance(layer, nn.Linear) else torch.randn(2, 8, 5, 5)
    expected = layer(masked_inputs(inputs, kept_in))[:, list(kept_out)]
    model = nn.Sequential(layer)
    surgery.apply(model, [cut("0", Side.OUT, 12, *kept_out), cut("0", Side.IN, 8, *kept_in)])
    assert torch.allclose(model(inputs[:, list(kept_in)]), expected, atol=1e-6)


@pytest.mark.parametrize(
    "layer",
    [
        nn.BatchNorm2d(8),
        nn.BatchNorm2d(8, affine=False),
        nn.InstanceNorm2d(8, affine=True),
        nn.PReLU(8),
        nn.Conv2d(8, 8, 3, groups=8),
        nn.ConvTranspose2d(8, 8, 3, groups=8),
    ],
    ids=lambda layer: type(layer).__name__,
)
def test_layers_that_map_each_channel_to_itself_keep_their_channels(layer: nn.Module) -> None:
    layer = copy.deepcopy(layer).eval()
    for tensor in (*layer.parameters(), *layer.buffers()):
        if tensor.dim():
            tensor.data.uniform_(0.5, 1.5)
    inputs, kept = torch.randn(2, 8, 5, 5), (0, 5, 6)
    expected = layer(inputs)[:, list(kept)]
    model = nn.Sequential(layer)
    surgery.apply(model, [cut("0", Side.BOTH, 8, *kept)])
    assert torch.allclose(model(inputs[:, list(kept)]), expected, atol=1e-6)


def test_norms_across_channels_keep_the_order_of_their_gains() -> None:
    kept = (3, 64, 65, 100, 127)  # an order that a set of integers would not keep
    for layer in (nn.LayerNorm(128), nn.GroupNorm(1, 128)):
        model = nn.Sequential(copy.deepcopy(layer))
        gains = model.get_parameter("0.weight")
        gains.data = torch.arange(128.0)
        surgery.apply(model, [cut("0", Side.BOTH, 128, *kept)])
        assert model.get_parameter("0.weight").tolist() == list(kept)
        assert model(torch.randn(2, 5)).shape == (2, 5)


def test_requires_grad_and_dtype_stay_and_bare_parameters_are_cut() -> None:
    model = nn.Sequential(nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)).half()
    model[0].weight.requires_grad = False
    model.gain = nn.Parameter(torch.ones(1, 4, 1))
    surgery.apply(model, [cut("0", Side.OUT, 4, 0, 2), cut("gain", Side.BOTH, 4, 0, 2)])
    assert not model[0].weight.requires_grad
    assert model[0].bias.requires_grad
    assert model[0].weight.dtype == torch.float16
    assert model.gain.shape == (1, 2, 1)
    assert model[1].weight.shape == (4, 4, 1, 1)


@pytest.mark.parametrize(
    ("cuts", "error", "sentence"),
    [
        ([cut("7", Side.OUT, 4, 0)], InputError, "has no layer '7'"),
        ([cut("0", Side.OUT, 5, 0)], InputError, r"0 has 4 channels \(out\) where .* expects 5"),
        ([cut("2", Side.BOTH, 4, 0)], InfeasibleError, "2 is a ReLU"),
        ([cut("3", Side.OUT, 4, 0, 1, 2)], InfeasibleError, "2 groups.*equally many.*1 to 2"),
        ([cut("gain", Side.BOTH, 4, 0)], InfeasibleError, r"gain is a bare tensor of shape"),
    ],
)
def test_a_cut_that_fails_leaves_the_model_whole(
    cuts: list[Cut], error: type[Exception], sentence: str
) -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1), nn.ReLU(), nn.Conv2d(4, 4, 1, groups=2)
    )
    model.gain = nn.Parameter(torch.ones(4, 4))
    with pytest.raises(error, match=sentence):
        surgery.apply(model, [cut("1", Side.IN, 4, 0), *cuts])
    assert model[1].weight.shape == (4, 4, 1, 1)
    assert model[1].in_channels == 4


def test_parametrized_layers_are_refused() -> None:
    model = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 4, 1)))
    with pytest.raises(InfeasibleError, match="0 is parametrized"):
        surgery.apply(model, [cut("0", Side.OUT, 4, 0)])


@pytest.mark.parametrize(("attribute", "value"), [("forward", 4), ("training", 0), ("stride", 2)])
def test_an_attribute_that_counts_nothing_is_not_set(attribute: str, value: int) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1))
    before = getattr(model[0], attribute)
    with pytest.raises(InputError, match=f"'{attribute}' in '0' is a .* and counts no channels"):
        surgery.apply(model, [], [Resize(name="0", attribute=attribute, value=value)])
    assert getattr(model[0], attribute) == before


def test_an_empty_cut_list_changes_nothing() -> None:
    model = CifarResNet()
    parameters = list(model.parameters())
    surgery.apply(model, [])
    assert all(a is b for a, b in zip(parameters, model.parameters(), strict=True))
