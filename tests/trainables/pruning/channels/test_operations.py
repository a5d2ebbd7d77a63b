"""Channels followed through the operations of real blocks, and the honest ends of it."""

import copy

import pytest
import torch
from timm import layers
from timm.layers.grn import GlobalResponseNorm
from torch import Tensor, nn
from torch.nn import functional as F

from tests.trainables.pruning.nets import Chain, CountsChannels, Flipped, Shuffled, Sorted
from tests.trainables.pruning.plans import plan_of
from trainables.errors import InfeasibleError
from trainables.pruning import PrunedStructure, prune, rebuild


def pruned(model: nn.Module, rule: str = "inner") -> PrunedStructure:
    return prune(model, plan_of(width_rule=rule), head="head", resolution=16, seed=0)


class Halves(nn.Module):
    """A split whose sizes are an attribute, as in cross-stage partial and Res2Net blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes = (6, 2)
        self.wide = nn.Conv2d(6, 6, 3, padding=1)

    def forward(self, maps: Tensor) -> Tensor:
        wide, narrow = torch.split(maps, list(self.sizes), dim=1)
        return torch.cat([self.wide(wide), narrow], dim=1)


class Chunked(nn.Module):
    """A chunk, whose pieces must stay equally wide, and a grouped convolution behind one."""

    def __init__(self) -> None:
        super().__init__()
        self.grouped = nn.Conv2d(4, 4, 3, padding=1, groups=2)

    def forward(self, maps: Tensor) -> Tensor:
        left, right = maps.chunk(2, dim=1)
        return torch.cat([self.grouped(left), right], dim=1)


class Gated(nn.Module):
    """One half of the channels gates the other, as in gated linear units."""

    def __init__(self) -> None:
        super().__init__()
        self.spread = nn.Conv2d(8, 16, 1)

    def forward(self, maps: Tensor) -> Tensor:
        return F.glu(self.spread(maps), dim=1)


class Attended(nn.Module):
    """A mean over places weighted by a map of one channel, as in global context blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.place = nn.Conv2d(8, 1, 1)

    def forward(self, maps: Tensor) -> Tensor:
        weights = self.place(maps).flatten(2).softmax(-1)
        context = maps.flatten(2) @ weights.transpose(1, 2)
        added: Tensor = maps + context.unsqueeze(-1)
        return added


class Positioned(nn.Module):
    """A bare parameter of several dimensions, one of which holds channels."""

    def __init__(self) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(1, 8, 1, 1))

    def forward(self, maps: Tensor) -> Tensor:
        return torch.stack([maps + self.bias, maps], dim=1).sum(1)


@pytest.mark.parametrize(
    "between",
    [
        layers.BlurPool2d(8),
        layers.EcaModule(8),
        GlobalResponseNorm(8, channels_last=False),
        layers.LayerNorm2d(8),
        layers.EvoNorm2dS0(8, groups=2),
        layers.FilterResponseNormTlu2d(8),
        layers.ScaledStdConv2d(8, 8, 3, padding=1),
        layers.SelectiveKernel(8, 8),
        layers.SplitAttn(8, 8, kernel_size=3, padding=1),
        layers.GlobalContext(8),
        nn.Hardswish(),
        Halves(),
        Chunked(),
        Gated(),
        Attended(),
        Positioned(),
    ],
    ids=lambda value: type(value).__name__,
)
def test_blocks_of_many_families_prune_and_rebuild(between: nn.Module) -> None:
    model = Chain(copy.deepcopy(between)).eval()
    again = copy.deepcopy(model)
    structure = pruned(model, "all")
    assert model.first.out_channels == 4
    assert model.second.in_channels == 4
    assert structure.skipped == ()
    rebuild(again, PrunedStructure.from_dict(structure.to_dict()), resolution=16)
    again.load_state_dict(model.state_dict())
    images = torch.randn(2, 3, 16, 16)
    assert torch.equal(again(images), model(images))


def test_attributes_that_count_channels_follow_the_cut() -> None:
    model = Chain(Halves())
    structure = pruned(model, "all")
    assert model.between.sizes == (3, 1)
    assert isinstance(model.between.sizes, tuple)
    (resize,) = structure.resizes
    assert (resize.name, resize.attribute, resize.value) == ("between", "sizes", (3, 1))


class Written(nn.Module):
    """Writes into a part of a tensor."""

    def forward(self, maps: Tensor) -> Tensor:
        out = maps.clone()
        out[:, :4].copy_(maps[:, 4:])
        return out


class Indexed(nn.Module):
    """Takes channels by number."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("order", torch.arange(8).flip(0), persistent=False)

    def forward(self, maps: Tensor) -> Tensor:
        return maps[:, self.get_buffer("order")]


class Uneven(nn.Module):
    """Eight channels in chunks of three, three and two."""

    def forward(self, maps: Tensor) -> Tensor:
        return torch.cat(maps.chunk(3, dim=1)[::-1], dim=1)


class Covariance(nn.Module):
    """Multiplies channels with one another."""

    def forward(self, maps: Tensor) -> Tensor:
        rows = maps.flatten(2)
        return (rows @ rows.transpose(1, 2)).unsqueeze(-1)


@pytest.mark.parametrize(
    ("between", "reason"),
    [
        (Written(), r"between \(Written\) writes channels into another tensor"),
        (Indexed(), r"between \(Indexed\) uses index"),
        (Uneven(), r"splits 8 channels into uneven pieces of 3"),
        (Covariance(), r"multiplies matrices in which channels meet one another"),
        (nn.Conv2d(8, 8, 1, groups=8), None),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
def test_what_is_not_followed_is_refused_by_name(between: nn.Module, reason: str | None) -> None:
    model = Chain(between)
    if reason is None:  # the counterpart, so that a refusal of everything would show
        pruned(model)
        return
    with pytest.raises(InfeasibleError, match=reason):
        pruned(model)


class TwoHalves(nn.Module):
    """A branch that cannot be followed beside one that can."""

    def __init__(self) -> None:
        super().__init__()
        self.plain = Chain(nn.BatchNorm2d(8))
        self.odd = nn.Conv2d(3, 4, 1)
        self.after = nn.Conv2d(4, 4, 1)
        self.head = nn.Linear(9, 5)

    def forward(self, images: Tensor) -> Tensor:
        odd = self.after(self.odd(images).sort(1).values)
        logits: Tensor = self.head(torch.cat([self.plain(images), odd.mean((2, 3))], 1))
        return logits


def test_a_group_that_cannot_go_stays_dense_and_is_listed() -> None:
    model = TwoHalves()
    structure = pruned(model, "all")
    skipped = {skip.name: skip for skip in structure.skipped}
    assert list(skipped) == ["odd"]
    assert skipped["odd"].channels == 4
    assert "uses sort" in skipped["odd"].reason
    assert model.odd.out_channels == 4
    assert model.plain.first.out_channels == 4


class Applied(nn.Module):
    """A module whose function is an attribute."""

    def __init__(self, function: object) -> None:
        super().__init__()
        self.function = function

    def forward(self, maps: Tensor) -> Tensor:
        assert callable(self.function)
        result: Tensor = self.function(maps)
        return result


def _flipped(maps: Tensor) -> Tensor:
    return maps.flip(1)


def _sorted(maps: Tensor) -> Tensor:
    return maps.sort(1).values


def test_models_that_differ_in_a_function_alone_have_graphs_of_their_own() -> None:
    pruned(Chain(Applied(_flipped)))
    with pytest.raises(InfeasibleError, match="uses sort"):
        pruned(Chain(Applied(_sorted)))


@pytest.mark.parametrize(
    "between",
    [Flipped(), nn.ChannelShuffle(2), Shuffled(2)],
    ids=lambda value: type(value).__name__,
)
def test_operations_that_move_channels_are_followed(between: nn.Module) -> None:
    model = Chain(between)
    pruned(model)
    assert model.first.out_channels == 4
    assert model.second.out_channels == 12


@pytest.mark.parametrize(
    ("between", "reason"),
    [
        (nn.LocalResponseNorm(3), r"between \(LocalResponseNorm\) uses pooling along channels"),
        (nn.PixelShuffle(2), r"second \(Conv2d\) reads channels spread over places"),
        (Sorted(), r"between \(Sorted\) uses sort, through which channels are not followed"),
        (CountsChannels(), r"Pruning changes what second computes"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_cannot_be_followed_is_refused_by_name_and_the_model_left_whole(
    between: nn.Module, reason: str
) -> None:
    model = Chain(between, between_width=2 if isinstance(between, nn.PixelShuffle) else 8)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(InfeasibleError, match=reason):
        pruned(model)
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
