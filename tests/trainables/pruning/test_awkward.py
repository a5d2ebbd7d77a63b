"""Models in which something stands in the way: it stays dense and is listed, the rest is pruned."""

import copy
import functools
import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, spectral_norm

from tests.trainables.pruning.plans import plan_of
from trainables.errors import InfeasibleError
from trainables.pruning import PrunedStructure, WidthRule, prune, pruner
from trainables.pruning.channels.engine import find_groups
from trainables.pruning.proof import _mask
from trainables.remembered import Remembered


def block(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()
    )


class Around(nn.Module):
    """A chain of blocks with `middle`, which keeps 16 channels, in it."""

    def __init__(self, middle: nn.Module) -> None:
        super().__init__()
        self.stem = block(3, 8)
        self.before = block(8, 16)
        self.middle = middle
        self.after = block(16, 24)
        self.last = block(24, 24)
        self.head = nn.Linear(24, 5)

    def forward(self, images: Tensor) -> Tensor:
        maps = self.last(self.after(self.middle(self.before(self.stem(images)))))
        logits: Tensor = self.head(maps.mean((2, 3)))
        return logits


def pruned(model: nn.Module, rule: str = "all", **choices: Any) -> PrunedStructure:
    seed = choices.pop("seed", 0)
    return prune(model, plan_of(width_rule=rule, **choices), head="head", resolution=16, seed=seed)


def assert_faithful(middle: nn.Module, rule: str = "all", **choices: Any) -> PrunedStructure:
    """Prunes a net with `middle`; it computes what the dense one does with zeros, and trains."""
    torch.manual_seed(0)
    dense = Around(copy.deepcopy(middle)).double().eval()
    net = copy.deepcopy(dense)
    structure = pruned(net, rule, **choices)
    for cut in structure.cuts:
        _mask(dense, cut)
    images = torch.randn(3, 3, 16, 16, dtype=torch.float64)
    assert torch.allclose(net(images), dense(images), atol=1e-9)
    net.train()(images).sum().backward()
    return structure


class Rolled(nn.Module):
    """Shifts channels, so that it matters which of them go."""

    def forward(self, maps: Tensor) -> Tensor:
        return maps.roll(1, 1)


class Turned(nn.Module):
    """The same by slices."""

    def forward(self, maps: Tensor) -> Tensor:
        return torch.cat([maps[:, 3:], maps[:, :3]], dim=1)


class Neighbours(nn.Module):
    """Each channel and the next one."""

    def forward(self, maps: Tensor) -> Tensor:
        return maps + 0.5 * maps.roll(-1, 1)


@pytest.mark.parametrize("moves", [Rolled, Turned, Neighbours])
def test_which_channels_go_decides_and_what_was_proved_before_does_not(
    moves: Callable[[], nn.Module], monkeypatch: pytest.MonkeyPatch
) -> None:
    def structures(*, anew: bool) -> list[PrunedStructure]:
        found = []
        for seed in range(4):
            if anew or not seed:
                monkeypatch.setattr(pruner, "_faults", Remembered(size=8))
                monkeypatch.setattr(pruner, "_standard_faults", Remembered(size=8))
            found.append(assert_faithful(moves(), criterion="random", seed=seed))
        return found

    assert structures(anew=True) == structures(anew=False)


class Configured(nn.Module):
    """Moves channels by something that is no plain number of its own."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config = config

    def forward(self, maps: Tensor) -> Tensor:
        config = self.config
        if isinstance(config, dict):
            return maps.sort(1).values if config["sort"] else maps
        if callable(config):
            result: Tensor = config(maps)
            return result
        return maps.sort(1).values if config.sort else maps


def _chosen(maps: Tensor, *, sort: bool) -> Tensor:
    return maps.sort(1).values if sort else maps


def _closed_over(*, sort: bool) -> Callable[[Tensor], Tensor]:
    return lambda maps: maps.sort(1).values if sort else maps


@pytest.mark.parametrize(
    "make",
    [
        lambda *, sort: SimpleNamespace(sort=sort),
        lambda *, sort: {"sort": sort},
        lambda *, sort: functools.partial(_chosen, sort=sort),
        _closed_over,
    ],
    ids=["object", "dict", "partial", "closure"],
)
def test_models_that_differ_in_any_attribute_have_proofs_of_their_own(
    make: Callable[..., Any],
) -> None:
    plain = assert_faithful(Configured(make(sort=False)))
    sorts = assert_faithful(Configured(make(sort=True)))
    assert plain.skipped == ()
    assert [skip.name for skip in sorts.skipped] == ["before.0"]


class LiteralSplit(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inside = block(8, 8)

    def forward(self, maps: Tensor) -> Tensor:
        left, right = torch.split(maps, [8, 8], 1)
        return torch.cat([left, self.inside(right)], 1)


class LiteralGroups(nn.Module):
    """A norm by hand over groups of four channels, four of them."""

    def forward(self, maps: Tensor) -> Tensor:
        grouped = maps.reshape(len(maps), 4, 4, *maps.shape[2:])
        normed = grouped / (grouped.square().mean((2, 3, 4), keepdim=True) + 1e-3).sqrt()
        return normed.reshape(len(maps), 16, *maps.shape[2:])


class LiteralNorm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(16))

    def forward(self, maps: Tensor) -> Tensor:
        return F.layer_norm(maps.movedim(1, -1), (16,), self.gain).movedim(-1, 1)


class FromConfig(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.config = SimpleNamespace(half=8)
        self.inside = block(8, 8)

    def forward(self, maps: Tensor) -> Tensor:
        left, right = maps[:, : self.config.half], maps[:, self.config.half :]
        return torch.cat([self.inside(left), right], 1)


class ScaledByShape(nn.Module):
    """Attention over places, divided by the root of the width that it sees."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(16, 16) for _ in range(3))

    def forward(self, maps: Tensor) -> Any:
        rows = maps.flatten(2).transpose(1, 2)
        weights = self.query(rows) @ self.key(rows).transpose(1, 2) / math.sqrt(rows.shape[2])
        return maps + (weights.softmax(-1) @ self.value(rows)).transpose(1, 2).reshape(maps.shape)


class CountsInside(nn.Module):
    """A layer between two others that divides by how many channels it sees."""

    def __init__(self) -> None:
        super().__init__()
        self.wide = nn.Conv2d(16, 20, 1)
        self.narrow = nn.Conv2d(20, 16, 1)

    def forward(self, maps: Tensor) -> Any:
        wide = self.wide(maps)
        return maps + self.narrow(wide.tanh() / wide.shape[1])


AWKWARD = (
    LiteralSplit,
    LiteralGroups,
    LiteralNorm,
    FromConfig,
    ScaledByShape,
    CountsInside,
)


@pytest.mark.parametrize("middle", AWKWARD)
@pytest.mark.parametrize("rule", WidthRule)
def test_an_awkward_layer_stays_dense_and_is_listed_and_the_rest_is_pruned(
    middle: Callable[[], nn.Module], rule: WidthRule
) -> None:
    structure = assert_faithful(middle(), rule)
    cut = {cut.name for cut in structure.cuts}
    assert {"stem.0", "after.0"} <= cut, "what has nothing to do with it"
    names = [skip.name for skip in structure.skipped]
    if middle is not ScaledByShape or rule is WidthRule.ALL:  # inside, the width it sees stays
        assert names, "what stays is said"
    assert not {"stem.0", "after.0", "last.0"}.intersection(names)
    assert all(skip.reason.endswith(".") for skip in structure.skipped), "in a sentence"


def test_of_two_awkward_layers_only_their_own_channels_stay() -> None:
    structure = assert_faithful(nn.Sequential(CountsInside(), block(16, 16), CountsInside()))
    assert {skip.name for skip in structure.skipped} == {"middle.0.wide", "middle.2.wide"}


def test_the_awkward_layer_alone_is_named() -> None:
    (skip,) = assert_faithful(CountsInside(), "inner").skipped
    assert (skip.name, skip.channels) == ("middle.wide", 20)
    assert "Pruning changes what middle.narrow computes" in skip.reason


class OnlyCounts(nn.Module):
    """Nothing can go."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(3, 8, 1)
        self.head = nn.Linear(8, 5)

    def forward(self, images: Tensor) -> Tensor:
        maps = self.convolution(images)
        logits: Tensor = self.head(maps.mean((2, 3)) / maps.shape[1])
        return logits


def test_where_nothing_is_left_to_prune_the_plan_is_refused_with_the_reason() -> None:
    with pytest.raises(InfeasibleError, match="next to no channels .*Pruning changes what head"):
        pruned(OnlyCounts())


class TrainBranch(nn.Module):
    """A branch that runs in training alone."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(16, 16, 1)
        self.extra = nn.Conv2d(16, 16, 1)
        self.second = nn.Conv2d(16, 16, 1)

    def forward(self, maps: Tensor) -> Any:
        maps = self.first(maps)
        return self.second(maps + self.extra(maps) if self.training else maps)


class TrainScale(nn.Module):
    """In training it depends on the width."""

    def forward(self, maps: Tensor) -> Tensor:
        return maps / maps.shape[1] if self.training else maps / 16


class TrainRoll(nn.Module):
    """In training channels are moved."""

    def forward(self, maps: Tensor) -> Tensor:
        return maps.sort(1).values if self.training else maps


def test_layers_that_run_in_training_alone_are_cut_with_the_others() -> None:
    torch.manual_seed(0)
    dense = Around(TrainBranch()).double().train()
    net = copy.deepcopy(dense)
    structure = pruned(net)
    assert structure.skipped == ()
    assert net.middle.get_submodule("extra").weight.shape == (8, 8, 1, 1)
    for cut in structure.cuts:
        _mask(dense, cut)
    images = torch.randn(3, 3, 16, 16, dtype=torch.float64)
    assert torch.allclose(net(images), dense(images), atol=1e-9)


@pytest.mark.parametrize("middle", [TrainScale, TrainRoll])
def test_what_training_alone_does_with_channels_counts(middle: Callable[[], nn.Module]) -> None:
    structure = assert_faithful(middle())
    assert "before.0" in {skip.name for skip in structure.skipped}


@pytest.mark.parametrize(
    ("middle", "modes"),
    [
        (nn.Identity(), {"eval"}),
        (nn.Dropout(0.5), {"eval"}),
        (TrainBranch(), {"eval", "train"}),
        (TrainRoll(), {"eval", "train"}),
    ],
)
def test_a_model_is_followed_in_train_mode_only_where_it_does_other_things(
    middle: nn.Module, modes: set[str]
) -> None:
    assert set(find_groups(Around(middle), resolution=16, head=["head"]).modes) == modes


class Auxiliary(Around):
    """A second classifier in training."""

    def __init__(self) -> None:
        super().__init__(block(16, 16))
        self.second = nn.Sequential(nn.Conv2d(16, 8, 1), nn.Flatten(), nn.Linear(8 * 256, 5))

    def forward(self, images: Tensor) -> Any:
        maps = self.middle(self.before(self.stem(images)))
        logits = self.head(self.last(self.after(maps)).mean((2, 3)))
        return (logits, self.second(maps)) if self.training else logits


def test_an_auxiliary_classifier_is_cut_and_keeps_its_outputs() -> None:
    model = Auxiliary()
    pruned(model)
    first, second = model.train()(torch.randn(2, 3, 16, 16))
    (first.sum() + second.sum()).backward()
    assert first.shape == second.shape == (2, 5)
    assert model.get_parameter("second.0.weight").shape == (4, 8, 1, 1)


class Drawn(nn.Module):
    """Draws numbers in either mode."""

    def __init__(self, draw: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.draw = draw

    def forward(self, maps: Tensor) -> Tensor:
        return self.draw(maps)


@pytest.mark.parametrize(
    "draw",
    [
        lambda maps: F.dropout(maps, 0.3),
        lambda maps: F.dropout2d(maps, 0.3),
        lambda maps: F.rrelu(maps, training=True),
        lambda maps: maps + torch.randn_like(maps),
        lambda maps: maps * torch.rand(len(maps), 1, 1, 1, dtype=maps.dtype, device=maps.device),
        lambda maps: maps * torch.empty_like(maps).uniform_(0.5, 1.5),
        lambda maps: maps * torch.bernoulli(torch.full_like(maps, 0.7)),
        lambda maps: maps + torch.empty_like(maps).exponential_(2.0),
    ],
    ids=["dropout", "dropout2d", "rrelu", "normal", "rand", "uniform", "bernoulli", "exponential"],
)
def test_a_forward_that_draws_numbers_is_proved_with_equal_draws(
    draw: Callable[[Tensor], Tensor],
) -> None:
    model = Around(Drawn(draw))
    assert pruned(model).skipped == ()
    assert model.get_parameter("before.0.weight").shape[0] == 8


def test_chance_does_not_hide_what_is_unsound() -> None:
    model = Around(Drawn(lambda maps: F.dropout(maps, 0.3) / maps.shape[1]))
    assert [skip.name for skip in pruned(model).skipped] == ["before.0"]


class Standard(nn.Module):
    """One norm or activation between two layers that work along the last dimension."""

    def __init__(self, between: nn.Module) -> None:
        super().__init__()
        self.first, self.between, self.second = nn.Linear(16, 20), between, nn.Linear(20, 16)

    def forward(self, maps: Tensor) -> Any:
        rows = self.second(self.between(self.first(maps.movedim(1, -1))))
        return maps + rows.movedim(-1, 1)


@pytest.mark.parametrize(
    "between", [nn.RMSNorm(20), nn.RMSNorm(20, elementwise_affine=False), nn.PReLU()]
)
@pytest.mark.parametrize("rule", WidthRule)
def test_norms_over_channels_and_slopes_for_all_of_them(
    between: nn.Module, rule: WidthRule
) -> None:
    if isinstance(between, nn.RMSNorm) and between.weight is not None:
        nn.init.uniform_(between.weight, 0.5, 1.5)
    torch.manual_seed(0)
    model = Around(Standard(copy.deepcopy(between)))
    assert pruned(model, rule).skipped == ()
    assert model.middle.get_submodule("second").in_features == 10
    model(torch.randn(2, 3, 16, 16)).sum().backward()


@pytest.mark.parametrize(
    "middle",
    [
        nn.PReLU(),
        nn.Sequential(nn.Conv2d(16, 16, 1), nn.PReLU(), nn.PReLU(16), nn.Conv2d(16, 16, 1)),
    ],
    ids=["alone", "beside one with a slope for each"],
)
def test_a_slope_for_all_channels_is_left_alone(middle: nn.Module) -> None:
    assert assert_faithful(middle).skipped == ()


@pytest.mark.parametrize(
    "wrap", [parametrizations.weight_norm, parametrizations.spectral_norm, spectral_norm]
)
@pytest.mark.parametrize("layer", [nn.Conv2d(16, 16, 1), nn.Conv2d(16, 16, 3, 1, 1, groups=16)])
@pytest.mark.parametrize("rule", WidthRule)
def test_a_layer_whose_weight_is_computed_stays_and_is_listed(
    wrap: Callable[[nn.Module], nn.Module], layer: nn.Module, rule: WidthRule
) -> None:
    model = Around(nn.Sequential(nn.Conv2d(16, 16, 1), wrap(copy.deepcopy(layer)), nn.ReLU()))
    structure = pruned(model, rule)
    reasons = {skip.name: skip.reason for skip in structure.skipped}
    assert "middle.1 is parametrized" in reasons["middle.0"]
    assert model.get_parameter("stem.0.weight").shape[0] == 4
    model(torch.randn(2, 3, 16, 16)).sum().backward()


class ByHand(nn.Module):
    """A convolution with a weight of the module's own, standardised on the way."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(16, 16, 3, 3))

    def forward(self, maps: Tensor) -> Tensor:
        weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        return F.conv2d(maps, weight.contiguous(), padding=1)


class Projected(nn.Module):
    """A matrix product with a parameter, and a layer whose weight is used without it."""

    def __init__(self) -> None:
        super().__init__()
        self.matrix = nn.Parameter(torch.randn(16, 16))
        self.layer = nn.Linear(16, 16)

    def forward(self, maps: Tensor) -> Tensor:
        rows = maps.movedim(1, -1) @ self.matrix.T
        return F.linear(rows, self.layer.weight, self.layer.bias).movedim(-1, 1)


class Attended(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(16, 4, batch_first=True)

    def forward(self, maps: Tensor) -> Any:
        rows = maps.flatten(2).transpose(1, 2)
        mixed = self.attention(rows, rows, rows, need_weights=False)[0]
        return mixed.transpose(1, 2).reshape(maps.shape)


@pytest.mark.parametrize(
    ("middle", "names"),
    [
        (ByHand(), {"middle.weight"}),
        (Projected(), {"middle.matrix", "middle.layer"}),
        (Attended(), {"middle.attention.in_proj_weight", "middle.attention.out_proj"}),
    ],
    ids=["convolution", "products", "attention"],
)
def test_filters_that_no_layer_runs_are_listed(middle: nn.Module, names: set[str]) -> None:
    structure = assert_faithful(middle)
    assert names <= {skip.name for skip in structure.skipped}
    assert {"stem.0", "after.0"} <= {cut.name for cut in structure.cuts}
