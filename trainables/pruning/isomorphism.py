"""Isomorphism: which channel groups are built alike, so that their channels may be compared.

After "Isomorphic Pruning for Vision Models" (arXiv 2407.04616): importance is comparable only
between sub-structures of one topology, so each kind has a ranking of its own.
"""

from collections.abc import Hashable

from torch import nn

from trainables.pruning.channels.groups import ChannelGroup, is_depthwise


def structural_kind(model: nn.Module, group: ChannelGroup) -> Hashable:
    """Equal for groups whose channels are made, carried and read by the same kinds of layers.

    A kind of layer is its type, kernel and side, and whether it is depthwise; widths and strides do
    not matter. The layers are taken in the order of the group.
    """
    modules = dict(model.named_modules())
    return tuple(
        (
            type(layer).__name__,
            member.side,
            getattr(layer, "kernel_size", None),
            layer is not None and is_depthwise(layer),
        )
        for member in group.members
        for layer in (modules.get(member.name),)  # a bare parameter is no module
    )
