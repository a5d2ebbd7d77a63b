"""Widths: how many channels each group keeps, and which, given what each is worth."""

import math
from collections.abc import Hashable, Sequence

import torch
from torch import Tensor

from trainables.errors import InfeasibleError
from trainables.pruning.channels.groups import ChannelGroup
from trainables.pruning.plan import FilterScope, PruningPlan


def keep(
    groups: Sequence[ChannelGroup],
    scores: Sequence[Tensor],
    plan: PruningPlan,
    *,
    kinds: Sequence[Hashable] = (),
) -> tuple[Tensor, ...]:
    """The channels that stay in each group, ascending: the highest scores; ties go to the lower.

    `kinds` names the structure of each group, for the isomorphic scope alone: groups of one kind
    share a ranking.

    Raises `InfeasibleError` where a group's blocks are too small or too uneven to lose channels.
    """
    match plan.scope:
        case FilterScope.LAYER:
            shares = [1 - plan.ratio] * len(scores)
        case FilterScope.GLOBAL:
            shares = _ranked_shares(scores, plan.ratio)
        case FilterScope.ISOMORPHIC:
            shares = _shares_by_kind(scores, plan.ratio, kinds)
    kept = []
    for group, worth, share in zip(groups, scores, shares, strict=True):
        blocks = block_channels(group)
        size = len(blocks[0])
        step = plan.round_to // math.gcd(plan.round_to, len(blocks))
        count = rounded_width(size, share=share, round_to=step)
        kept.append(torch.cat([block[_highest(worth[block], count)] for block in blocks]))
    return tuple(channels.sort().values for channels in kept)


def rounded_width(width: int, *, share: float, round_to: int = 1) -> int:
    """`share` × `width` channels, a fraction dropped, then the nearest multiple of `round_to`.

    Halves go upwards; at least one multiple, never more than `width`.
    """
    channels = math.floor(round(share * width, 9))  # 9 digits: 1 - 0.9 is a little less than 0.1
    multiples = math.floor(channels / round_to + 0.5)
    return min(width, max(1, multiples) * round_to)


def block_channels(group: ChannelGroup) -> tuple[Tensor, ...]:
    """The channels of `group` in blocks of one size, each of which must keep equally many.

    A grouped convolution that makes or reads the channels asks this of its groups; where several
    do, the blocks are what their groups have in common, cut into parts of one size.
    """
    keys: list[list[int]] = [[] for _ in range(group.width)]
    grouped = [m for m in (*group.members, *group.partitions) if m.blocks > 1]
    for member in grouped:
        size = member.width // member.blocks
        for channel, index in zip(member.channels, member.indices, strict=True):
            keys[channel].append(index // size)
    blocks: dict[tuple[int, ...], list[int]] = {}
    for channel, key in enumerate(keys):
        blocks.setdefault(tuple(key), []).append(channel)
    size = math.gcd(*(len(block) for block in blocks.values()))
    if size == 1 and len(blocks) > 1:
        names = ", ".join(dict.fromkeys(member.name for member in grouped))
        raise InfeasibleError(
            f"{group.name} cannot be pruned: the blocks of {names} must keep equally many of its "
            f"{group.width} channels, which falls to one channel at a time."
        )
    return tuple(part for block in blocks.values() for part in torch.tensor(block).split(size))


def _ranked_shares(scores: Sequence[Tensor], ratio: float) -> list[float]:
    """The share of channels that each group keeps of one ranking over all, before rounding."""
    if not scores:
        return []
    relative = [worth / worth.mean().clamp_min(torch.finfo(worth.dtype).tiny) for worth in scores]
    everything = torch.cat(relative)
    count = rounded_width(len(everything), share=1 - ratio)
    stays = torch.zeros(len(everything), dtype=torch.bool)
    stays[_highest(everything, count)] = True
    parts = torch.split(stays, [len(worth) for worth in scores])
    return [float(part.double().mean()) for part in parts]


def _shares_by_kind(
    scores: Sequence[Tensor], ratio: float, kinds: Sequence[Hashable]
) -> list[float]:
    """The share of channels that each group keeps, with a ranking for each kind."""
    shares = [0.0] * len(scores)
    members: dict[Hashable, list[int]] = {}
    for position, kind in zip(range(len(scores)), kinds, strict=True):
        members.setdefault(kind, []).append(position)
    for positions in members.values():
        ranked = _ranked_shares([scores[position] for position in positions], ratio)
        for position, share in zip(positions, ranked, strict=True):
            shares[position] = share
    return shares


def _highest(worth: Tensor, count: int) -> Tensor:
    return worth.argsort(descending=True, stable=True)[:count]
