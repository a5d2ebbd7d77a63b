"""Channel groups: the channels of a network that must stay or go together."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from torch import nn

Convolution = nn.Conv1d | nn.Conv2d | nn.Conv3d
TransposedConvolution = nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d


class Side(StrEnum):
    """Which channels of a layer are meant."""

    OUT = "out"
    """The outputs of a convolution or linear layer: its filters, rows of its weight."""
    IN = "in"
    """The inputs of a convolution or linear layer: columns of its weight."""
    BOTH = "both"
    """Of a layer that maps each channel to itself: norms, depthwise convolutions, gains."""


@dataclass(frozen=True, kw_only=True)
class Member:
    """One side of one layer, and which of its channels belong to the group.

    `channels[k]` of the group is `indices[k]` of the layer. A channel may own several indices (a
    linear layer that reads a flattened map) or none (a concatenation seen from another part).
    """

    name: str
    """Qualified name of the module, or of a parameter that no standard module holds."""
    side: Side
    """Which of the layer's channels are meant."""
    width: int
    """Channels that the layer has on this side."""
    blocks: int = 1
    """Equal blocks that must keep equally many: the groups of a grouped convolution or norm."""
    channels: tuple[int, ...]
    """Channels of the group, each in [0, the group's width)."""
    indices: tuple[int, ...]
    """The layer's own index of each channel, in [0, width)."""


@dataclass(frozen=True, kw_only=True)
class ChannelGroup:
    """Channels that flow through the same layers, so that removing one cuts all its members."""

    name: str
    """The first layer that makes the channels."""
    width: int
    """Channels in the group."""
    members: tuple[Member, ...]
    """Every side of every layer that is cut when a channel goes."""
    producers: tuple[str, ...]
    """Layers that make the channels from others; depthwise layers and gates do not."""
    consumers: tuple[str, ...]
    """Layers that turn the channels into others, the branches that end in a gate left out."""
    joins: bool
    """The channels are concatenated, split or sliced on their way."""
    is_output: bool
    """The channels are the model's or its classifier's outputs and never go."""
    is_representation: bool
    """The classifier reads the channels."""
    fault: str | None = None
    """Why no channel can go, as a sentence naming the layer; `None` where they can."""

    @property
    def is_inner(self) -> bool:
        """Whether the channels are internal to a block: made by one layer and read by one.

        A residual stream is made by several layers or read by several, a stem that forks into a
        block and its shortcut is read by two, and a concatenation joins; none of them is inner.
        """
        return (
            len(self.producers) == 1
            and len(self.consumers) == 1
            and not self.joins
            and not self.is_representation
        )


@dataclass(frozen=True, kw_only=True)
class ChannelGraph:
    """All channel groups of a model, and the layers they must cover."""

    groups: tuple[ChannelGroup, ...]
    """In the order of the model's modules."""
    layers: Mapping[str, int]
    """Output widths of the convolutions and linear layers that a forward pass runs, depthwise
    ones left out."""


def is_depthwise(module: nn.Module) -> bool:
    """Whether `module` is a convolution that maps each channel to itself alone."""
    return (
        isinstance(module, Convolution | TransposedConvolution)
        and module.groups == module.in_channels == module.out_channels > 1
    )
