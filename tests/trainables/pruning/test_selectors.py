"""Scores against values computed by hand."""

import pytest
import torch
from torch import Tensor, nn

from tests.trainables.pruning.nets import Chain, Squeeze, TwoBranches
from trainables.errors import InputError
from trainables.pruning.channels.engine import find_groups
from trainables.pruning.channels.groups import ChannelGroup
from trainables.pruning.plan import Criterion
from trainables.pruning.selectors import DATA_DRIVEN, SELECTORS, Evidence, Filters, evidence_of


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


FILTERS = (
    (torch.tensor([[3.0, -4.0], [1.0, 1.0]]).double(), torch.tensor([0, 2])),
    (torch.tensor([[0.0, -2.0]]).double(), torch.tensor([2])),
)


def scores(
    criterion: Criterion,
    *,
    width: int = 3,
    filters: Filters = FILTERS,
    scales: Filters = (),
    gates: Tensor | None = None,
    seed: int = 0,
) -> Tensor:
    evidence = Evidence(
        width=width, filters=filters, scales=scales, gates=gates, generator=generator(seed)
    )
    return SELECTORS[criterion](evidence)


def group_of(model: nn.Module, name: str) -> ChannelGroup:
    graph = find_groups(model, resolution=16, head=["head"])
    (found,) = [group for group in graph.groups if name in group.producers]
    return found


def test_norms_are_summed_over_the_layers_that_make_a_channel() -> None:
    assert scores(Criterion.L1).tolist() == [7, 0, 4]
    assert scores(Criterion.L2).tolist() == pytest.approx([5, 0, 2**0.5 + 2])


def test_gains_count_by_size_over_all_norms_on_the_way() -> None:
    scales = (
        (torch.tensor([0.5, -2.0, 0.0]).double(), torch.tensor([0, 1, 2])),
        (torch.tensor([3.0]).double(), torch.tensor([2])),
    )
    assert scores(Criterion.BATCH_NORM_SCALE, scales=scales).tolist() == [0.5, 2, 3]


def test_channels_without_a_norm_are_ranked_by_their_filters() -> None:
    assert torch.equal(scores(Criterion.BATCH_NORM_SCALE), scores(Criterion.L2))


def test_filters_near_all_others_are_worth_least() -> None:
    rows = torch.tensor([[0.0, 0.0], [3.0, 4.0], [0.0, 8.0]]).double()
    found = scores(Criterion.GEOMETRIC_MEDIAN, filters=((rows, torch.arange(3)),))
    assert found.tolist() == pytest.approx([5 + 8, 5 + 5, 8 + 5])


def test_taylor_averages_before_it_squares_and_fisher_after() -> None:
    gates = torch.tensor([[1.0, 3.0, 0.0], [1.0, -3.0, 2.0]]).double()
    assert scores(Criterion.TAYLOR, gates=gates).tolist() == [1, 0, 1]
    assert scores(Criterion.FISHER, gates=gates).tolist() == [1, 9, 2]


@pytest.mark.parametrize("criterion", sorted(DATA_DRIVEN))
def test_a_criterion_of_gradients_asks_for_them(criterion: Criterion) -> None:
    with pytest.raises(InputError, match="give prune a way to measure them on labelled images"):
        scores(criterion)


def test_random_depends_on_the_generator_alone() -> None:
    first, again = (scores(Criterion.RANDOM, width=9, filters=f) for f in (FILTERS, ()))
    assert torch.equal(first, again)
    assert not torch.equal(first, scores(Criterion.RANDOM, width=9, seed=1))


def test_every_criterion_has_a_selector() -> None:
    assert set(SELECTORS) == set(Criterion)


def test_filters_of_shared_channels_come_from_all_their_producers() -> None:
    model = TwoBranches()
    evidence = evidence_of(model, group_of(model, "left"), generator=generator())
    left, right = (layer.weight.abs().sum((1, 2, 3)) for layer in (model.left, model.right))
    assert torch.allclose(SELECTORS[Criterion.L1](evidence), (left + right).double())


def test_filters_of_a_transposed_convolution_are_its_outputs() -> None:
    model = Chain(nn.ConvTranspose2d(8, 8, 3, padding=1))
    evidence = evidence_of(model, group_of(model, "between"), generator=generator())
    ((rows, channels),) = evidence.filters
    assert torch.equal(rows[3], model.between.weight[:, 3].flatten().double())
    assert channels.tolist() == list(range(8))


def test_the_gains_are_those_of_the_norm_behind_the_filters() -> None:
    model = Chain(nn.BatchNorm2d(8))
    with torch.no_grad():
        model.between.weight.copy_(torch.arange(8) - 4.0)
    evidence = evidence_of(model, group_of(model, "first"), generator=generator())
    found = SELECTORS[Criterion.BATCH_NORM_SCALE](evidence)
    assert found.tolist() == [4, 3, 2, 1, 0, 1, 2, 3]
    plain = Chain(Squeeze(8))
    assert evidence_of(plain, group_of(plain, "first"), generator=generator()).scales == ()
