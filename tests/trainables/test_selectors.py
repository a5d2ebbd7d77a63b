"""Scores against norms computed by hand."""

import pytest
import torch
from pruning_nets import Chain, TwoBranches
from torch import nn

from trainables.pruning.engine import find_groups
from trainables.pruning.plan import Criterion
from trainables.pruning.selectors import SELECTORS, filters_of


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


FILTERS = (
    (torch.tensor([[3.0, -4.0], [1.0, 1.0]]).double(), torch.tensor([0, 2])),
    (torch.tensor([[0.0, -2.0]]).double(), torch.tensor([2])),
)


def test_norms_are_summed_over_the_layers_that_make_a_channel() -> None:
    assert SELECTORS[Criterion.L1](FILTERS, 3, generator()).tolist() == [7, 0, 4]
    assert SELECTORS[Criterion.L2](FILTERS, 3, generator()).tolist() == pytest.approx(
        [5, 0, 2**0.5 + 2]
    )


def test_random_depends_on_the_generator_alone() -> None:
    random = SELECTORS[Criterion.RANDOM]
    assert torch.equal(random(FILTERS, 9, generator()), random((), 9, generator()))
    assert not torch.equal(random(FILTERS, 9, generator()), random(FILTERS, 9, generator(1)))


def test_every_criterion_has_a_selector() -> None:
    assert set(SELECTORS) == set(Criterion)


def test_filters_of_shared_channels_come_from_all_their_producers() -> None:
    model = TwoBranches()
    graph = find_groups(model, resolution=16, head=["head"])
    (shared,) = [group for group in graph.groups if "left" in group.producers]
    scores = SELECTORS[Criterion.L1](filters_of(model, shared), 8, generator())
    expected = sum(layer.weight.abs().sum((1, 2, 3)) for layer in (model.left, model.right))
    assert torch.allclose(scores, expected.double())


def test_filters_of_a_transposed_convolution_are_its_outputs() -> None:
    model = Chain(nn.ConvTranspose2d(8, 8, 3, padding=1))
    graph = find_groups(model, resolution=16, head=["head"])
    (group,) = [g for g in graph.groups if g.name == "between"]
    ((rows, channels),) = filters_of(model, group)
    assert torch.equal(rows[3], model.between.weight[:, 3].flatten().double())
    assert channels.tolist() == list(range(8))
