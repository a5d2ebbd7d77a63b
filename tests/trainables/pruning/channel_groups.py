"""Channel groups made by hand."""

from collections.abc import Sequence

from trainables.pruning.channels.groups import ChannelGroup, Member, Side


def reader(
    name: str,
    width: int,
    *,
    blocks: int = 1,
    channels: Sequence[int] | None = None,
    indices: Sequence[int] | None = None,
) -> Member:
    """A layer that reads the group's `channels` as its inputs `indices`; all in order unless said
    otherwise."""
    return Member(
        name=name,
        side=Side.IN,
        width=width,
        blocks=blocks,
        channels=tuple(range(width) if channels is None else channels),
        indices=tuple(range(width) if indices is None else indices),
    )


def group(width: int, *members: Member) -> ChannelGroup:
    """A group inside of a block, which `members` carry or read."""
    return ChannelGroup(
        name="layer",
        width=width,
        members=members,
        producers=("layer",),
        consumers=("next",),
        is_inner=True,
        is_output=False,
        is_representation=False,
    )
