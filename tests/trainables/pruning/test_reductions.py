"""Reductions of channels, and of the layers that carry and read them."""

import pytest
import torch

from tests.trainables.pruning.channel_groups import group, reader
from trainables.pruning.reductions import (
    GONE,
    Reduction,
    averaged,
    dropped,
    kept_of,
    membership,
    reduced_layers,
    summed,
)

STANDS = torch.tensor([0, 0, GONE, 3, 0])
"""Five channels: 1 and 4 live on in 0, 2 goes, 3 stays alone."""


def test_readers_add_up_and_makers_average_what_a_channel_stands_for() -> None:
    values = torch.tensor([1.0, 2.0, 100.0, 5.0, 6.0]).double()
    assert kept_of(STANDS).tolist() == [0, 3]
    assert summed(STANDS, values).tolist() == [9, 5]
    assert averaged(STANDS, values).tolist() == [3, 5]
    assert (values @ membership(STANDS)).tolist() == [9, 5]
    assert membership(STANDS)[2].tolist() == [0, 0]


def test_dropping_merges_nothing() -> None:
    whole = group(5)
    plain = dropped(whole, torch.tensor([1, 4]))
    assert plain.stands.tolist() == [GONE, 1, GONE, GONE, 4]
    assert not plain.merges
    assert Reduction(group=whole, stands=STANDS).merges


def test_a_layer_that_reads_two_groups_keeps_what_both_leave() -> None:
    one = group(2, reader("cat", 5, channels=(0, 1), indices=(0, 1)))
    two = group(3, reader("cat", 5, channels=(0, 1, 2), indices=(2, 3, 4)))
    (layer,) = reduced_layers([dropped(one, torch.tensor([1])), dropped(two, torch.tensor([0, 2]))])
    assert layer.stands.tolist() == [GONE, 1, 2, GONE, 4]


def test_layers_that_lose_nothing_are_left_out() -> None:
    whole = group(2, reader("next", 2))
    assert reduced_layers([dropped(whole, torch.tensor([0, 1]))]) == ()


@pytest.mark.parametrize(
    ("indices", "taps", "stands"),
    [
        ((0, 1, 2, 3), 2, [GONE, 1]),  # places of a channel lie side by side, as flatten() has them
        ((0, 2, 1, 3), 1, [GONE, 1, GONE, 3]),  # they do not
    ],
)
def test_the_places_of_a_flattened_map_are_one_channel(
    indices: tuple[int, ...], taps: int, stands: list[int]
) -> None:
    flat = group(2, reader("head", 4, channels=(0, 0, 1, 1), indices=indices))
    (layer,) = reduced_layers([dropped(flat, torch.tensor([1]))])
    assert (layer.taps, layer.stands.tolist()) == (taps, stands)
