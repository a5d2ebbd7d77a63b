"""Scores against norms computed by hand."""

import pytest
import torch
from pruning_nets import Chain, CifarResNet
from torch import nn

from trainables.pruning.engine import find_groups
from trainables.pruning.plan import Criterion
from trainables.pruning.selectors import SELECTORS, filters_of


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


FILTERS = (
    (torch.tensor([[3.0, -4.0], [1.0, 1.0]]), torch.tensor([0, 2])),
    (torch.tensor([[0.0, -2.0]]), torch.tensor([2])),
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


def test_filters_of_a_stream_come_from_all_its_producers() -> None:
    model = CifarResNet(blocks=2)
    graph = find_groups(model, resolution=16, head=["linear"])
    (stream,) = [g for g in graph.groups if g.name == "layer3.0.conv2"]
    filters = filters_of(model, stream)
    assert [rows.shape for rows, _ in filters] == [(64, 64 * 9)] * 2
    expected = model.layer3[0].conv2.weight.flatten(1), model.layer3[1].conv2.weight.flatten(1)
    scores = SELECTORS[Criterion.L1](filters, 64, generator())
    assert torch.allclose(scores, sum(w.double().abs().sum(1) for w in expected))


def test_filters_of_a_transposed_convolution_are_its_outputs() -> None:
    model = Chain(nn.ConvTranspose2d(8, 8, 3, padding=1))
    graph = find_groups(model, resolution=16, head=["head"])
    (group,) = [g for g in graph.groups if g.name == "between"]
    ((rows, channels),) = filters_of(model, group)
    assert torch.equal(rows[3], model.between.weight[:, 3].flatten().double())
    assert channels.tolist() == list(range(8))
