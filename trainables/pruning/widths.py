"""Widths: how many channels each group keeps, and which, given what each is worth."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from trainables.errors import InfeasibleError
from trainables.pruning.groups import ChannelGroup
from trainables.pruning.plan import PruningPlan, Scope


def keep(
    groups: Sequence[ChannelGroup], scores: Sequence[Tensor], plan: PruningPlan
) -> tuple[Tensor, ...]:
    """The channels that stay in each group, ascending: the highest scores; ties go to the lower.

    Raises `InfeasibleError` where a group's blocks are too small or too uneven to lose channels.
    """
    kept = []
    for group, worth, share in zip(groups, scores, _shares(scores, plan), strict=True):
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


def _shares(scores: Sequence[Tensor], plan: PruningPlan) -> list[float]:
    """The share of channels that each group keeps before rounding."""
    if plan.scope is Scope.LAYER or not scores:
        return [1 - plan.ratio] * len(scores)
    relative = [worth / worth.mean().clamp_min(torch.finfo(worth.dtype).tiny) for worth in scores]
    everything = torch.cat(relative)
    count = rounded_width(len(everything), share=1 - plan.ratio)
    stays = torch.zeros(len(everything), dtype=torch.bool)
    stays[_highest(everything, count)] = True
    parts = torch.split(stays, [len(worth) for worth in scores])
    return [float(part.double().mean()) for part in parts]


def _highest(worth: Tensor, count: int) -> Tensor:
    return worth.argsort(descending=True, stable=True)[:count]
