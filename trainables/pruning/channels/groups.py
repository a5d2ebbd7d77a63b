"""Channel groups: the channels of a network that must stay or go together."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from torch import Tensor, nn

from trainables.backbones.layers import computes_its_weight
from trainables.backbones.modes import Mode

Convolution = nn.Conv1d | nn.Conv2d | nn.Conv3d
TransposedConvolution = nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d
# instance norms share a base with batch norms
ChannelwiseNorm = (
    nn.modules.batchnorm._NormBase | nn.GroupNorm | nn.LayerNorm | nn.RMSNorm | nn.PReLU
)
LAYERS = nn.Linear | Convolution | TransposedConvolution | ChannelwiseNorm
"""The kinds of layer that can be cut, for `isinstance`, which finds subclasses of users too."""


class Side(StrEnum):
    """Which channels of a layer are meant."""

    OUT = "out"
    """The outputs of a convolution or linear layer: its filters, rows of its weight."""
    IN = "in"
    """The inputs of a convolution or linear layer: columns of its weight."""
    BOTH = "both"
    """Inputs and outputs, which are one where a layer maps each channel to itself: norms, depthwise
    convolutions, gains."""


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
class ChannelMixing:
    """A statistic over channels that a module without layers computes.

    Efficient channel attention and global response normalisation do so. After a cut the statistic
    is of the kept channels alone.
    """

    name: str
    """Qualified name of the module."""
    dim: int
    """Where its input holds channels."""
    channels: tuple[tuple[int, int] | None, ...]
    """Group and channel of each, by position in `ChannelGraph.groups`; `None` if it never goes."""


@dataclass(frozen=True, kw_only=True)
class DeclaredWidth:
    """An attribute in which a module keeps a number of channels, as the sizes of a split."""

    name: str
    """Qualified name of the module."""
    attribute: str
    """Its attribute, an integer or a sequence of them."""
    position: int | None
    """In the sequence; `None` for an integer."""
    channels: tuple[tuple[int, int] | None, ...]
    """Group and channel of each that it counts; `None` for those that never go."""


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
    partitions: tuple[Member, ...] = ()
    """Members that are no layers: views and splits whose blocks must keep equally many."""
    is_output: bool
    """The channels are the model's or its classifier's outputs and never go."""
    is_representation: bool
    """The classifier reads the channels."""
    is_inner: bool
    """Whether the channels are internal to a block: see `trainables.pruning.channels.engine`."""
    fault: str | None = None
    """Why no channel can go, as a sentence naming the layer; `None` where they can."""


@dataclass(frozen=True, kw_only=True)
class ChannelGraph:
    """All channel groups of a model, and the layers they must cover."""

    groups: tuple[ChannelGroup, ...]
    """In the order of the model's modules."""
    layers: Mapping[str, int]
    """Output widths of the convolutions and linear layers that a forward pass runs, depthwise
    ones left out."""
    declared: tuple[DeclaredWidth, ...] = ()
    """Attributes that must follow the cuts."""
    mixings: tuple[ChannelMixing, ...] = ()
    """Statistics over channels."""
    loose: Mapping[str, int] = field(default_factory=dict)
    """Widths of the weights that something outside of any layer computes with; they stay."""
    modes: tuple[Mode, ...] = (Mode.EVAL,)
    """The modes in which the model differs, and in each of which cuts must be proved."""
    draws: bool = False
    """Whether the model draws random numbers, dropout layers left out."""


def is_depthwise(module: nn.Module) -> bool:
    """Whether `module` is a convolution that maps each channel to itself alone."""
    return (
        isinstance(module, Convolution | TransposedConvolution)
        and module.groups == module.in_channels == module.out_channels > 1
    )


def passes_channels(module: nn.Module) -> bool:
    """Whether `module` is of a kind that can be cut and yet has nothing for each channel.

    One slope for all channels is none for each, and stays whatever goes.
    """
    return isinstance(module, nn.PReLU) and module.num_parameters == 1


def obstacle(name: str, layer: nn.Module) -> str | None:
    """Why the layer called `name` cannot be cut, as a sentence; `None` where it can."""
    if computes_its_weight(layer):
        return f"{name} is parametrized: its tensors are computed from others and cannot be cut."
    return None


def channel_dim(layer: nn.Module, maps: Tensor) -> int:
    """The dimension of `maps`, an input or output of `layer`, that holds the layer's channels.

    The last for linear layers, layer and RMS norms, unless made for 2-D maps; else the second.
    """
    last = isinstance(layer, nn.Linear | nn.LayerNorm | nn.RMSNorm)
    if last and "2d" not in type(layer).__name__:
        return maps.dim() - 1
    return 1
