"""Widths: numbers in, decisions out."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.trainables.pruning import channel_groups
from tests.trainables.pruning.channel_groups import reader
from trainables.errors import InfeasibleError
from trainables.pruning import FilterScope, PruningPlan
from trainables.pruning.channels.groups import ChannelGroup
from trainables.pruning.widths import block_channels, keep, rounded_width


def group(width: int, *blocks: int) -> ChannelGroup:
    """A group that grouped convolutions read, one of each number of blocks."""
    return channel_groups.group(
        width, *(reader(f"grouped{count}", width, blocks=count) for count in blocks)
    )


def scores(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


@pytest.mark.parametrize(
    ("width", "share", "round_to", "expected"),
    [
        (64, 0.9, 1, 57),
        (64, 0.1, 1, 6),
        (5, 1 - 0.9, 1, 1),  # 0.4999… in floats, a half in truth
        (3, 0.5, 1, 1),
        (24, 0.5, 8, 16),  # halves upwards
        (64, 0.5, 8, 32),
        (64, 0.3, 8, 16),
        (24, 0.01, 8, 8),  # at least one multiple
        (6, 0.5, 8, 6),  # never more than there were
        (1, 0.01, 1, 1),
    ],
)
def test_rounded_width(width: int, share: float, round_to: int, expected: int) -> None:
    assert rounded_width(width, share=share, round_to=round_to) == expected


@given(
    width=st.integers(1, 4096),
    share=st.floats(0.001, 1),
    round_to=st.integers(1, 64),
)
def test_a_rounded_width_is_a_multiple_near_its_share(
    width: int, share: float, round_to: int
) -> None:
    kept = rounded_width(width, share=share, round_to=round_to)
    assert 1 <= kept <= width
    assert kept % round_to == 0 or kept == width
    asked = math.floor(share * width + 1e-9)
    assert abs(kept - asked) <= round_to / 2 or kept in (round_to, width)


def test_the_highest_scores_stay_and_ties_go_to_the_lower_channel() -> None:
    plan = PruningPlan(ratio=0.5)
    (kept,) = keep([group(4)], [scores(1, 3, 2, 4)], plan)
    assert kept.tolist() == [1, 3]
    (kept,) = keep([group(4)], [scores(7, 7, 7, 7)], plan)
    assert kept.tolist() == [0, 1]


def test_each_block_of_a_grouped_convolution_keeps_equally_many() -> None:
    (kept,) = keep([group(6, 2)], [scores(9, 8, 7, 3, 2, 1)], PruningPlan(ratio=1 / 3))
    assert kept.tolist() == [0, 1, 3, 4]
    (kept,) = keep([group(8, 2, 4)], [scores(*range(8))], PruningPlan(ratio=0.5))
    assert kept.tolist() == [1, 3, 5, 7]


def test_round_to_counts_all_blocks_together() -> None:
    (kept,) = keep([group(32, 4)], [scores(*range(32))], PruningPlan(ratio=0.7, round_to=8))
    assert len(kept) == 8
    assert kept.tolist() == [6, 7, 14, 15, 22, 23, 30, 31]


def test_the_global_scope_ranks_over_layers_but_empties_none() -> None:
    plan = PruningPlan(ratio=0.5, scope=FilterScope.GLOBAL)
    weak, flat = scores(1, 1, 1, 1), scores(0, 0, 20, 20)
    kept = keep([group(4), group(4)], [weak, flat], plan)
    assert [k.tolist() for k in kept] == [[0, 1], [2, 3]]
    tiny = keep([group(2), group(6)], [scores(1, 1), scores(0, 0, 0, 0, 0, 9)], plan)
    assert [len(k) for k in tiny] == [2, 2]
    skewed = keep([group(2), group(2)], [scores(0, 0), scores(5, 5)], plan)
    assert [k.tolist() for k in skewed] == [[0], [0, 1]]


def test_the_global_scope_does_not_depend_on_a_layers_scale() -> None:
    plan = PruningPlan(ratio=0.4, scope=FilterScope.GLOBAL)
    a, b = scores(1, 2, 3, 4, 5), scores(2, 2, 2, 9, 9)
    groups = [group(5), group(5)]
    plain, scaled = keep(groups, [a, b], plan), keep(groups, [a * 1000, b], plan)
    assert [k.tolist() for k in plain] == [k.tolist() for k in scaled]


def test_the_isomorphic_scope_ranks_within_a_kind_alone() -> None:
    plan = PruningPlan(ratio=0.5, scope=FilterScope.ISOMORPHIC)
    peaked, even = scores(0, 0, 0, 12), scores(3, 3, 3, 3)
    groups = [group(4)] * 3
    kept = keep(groups, [peaked, even, peaked], plan, kinds=["conv", "conv", "depthwise"])
    # among the two of a kind the four highest of eight, by their layer's mean: 4, then 1 each
    assert [k.tolist() for k in kept] == [[3], [0, 1, 2], [0, 3]]
    alone = keep(groups, [peaked, even, peaked], plan, kinds=["a", "b", "c"])
    layer = keep(groups, [peaked, even, peaked], PruningPlan(ratio=0.5))
    assert [k.tolist() for k in alone] == [k.tolist() for k in layer]
    together = keep(groups, [peaked, even, peaked], plan, kinds=["a", "a", "a"])
    everywhere = keep(
        groups, [peaked, even, peaked], PruningPlan(ratio=0.5, scope=FilterScope.GLOBAL)
    )
    assert [k.tolist() for k in together] == [k.tolist() for k in everywhere]


def test_the_isomorphic_scope_empties_no_layer() -> None:
    plan = PruningPlan(ratio=0.5, scope=FilterScope.ISOMORPHIC)
    skewed = keep([group(2)] * 2, [scores(0, 0), scores(5, 5)], plan, kinds=["a", "a"])
    assert [k.tolist() for k in skewed] == [[0], [0, 1]]


def test_blocks_that_cannot_lose_channels_are_refused_by_name() -> None:
    with pytest.raises(InfeasibleError, match=r"layer cannot be pruned.*blocks of grouped4 must"):
        block_channels(group(4, 4))
    with pytest.raises(InfeasibleError, match=r"blocks of grouped2, grouped3 must keep equally"):
        block_channels(group(6, 2, 3))


def test_uneven_blocks_are_cut_into_parts_of_one_size() -> None:
    parts = block_channels(group(24, 2, 3))  # what they share has 8, 4, 4 and 8 channels
    assert [part.tolist() for part in parts] == [list(range(i, i + 4)) for i in range(0, 24, 4)]
