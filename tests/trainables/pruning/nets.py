"""Small networks that the pruning tests share, each with a shape of graph that timm's lack."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Chain(nn.Module):
    """Two convolutions and a classifier, with `between` the convolutions."""

    def __init__(
        self,
        between: nn.Module,
        *,
        width: int = 8,
        between_width: int | None = None,
        groups: int = 1,
    ) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, width, 3, padding=1)
        self.between: Any = between
        self.second = nn.Conv2d(between_width or width, 12, 3, padding=1, groups=groups)
        self.head = nn.Linear(12, 5)

    def forward(self, images: Tensor) -> Tensor:
        maps = F.relu(self.second(self.between(F.relu(self.first(images)))))
        logits: Tensor = self.head(maps.mean((2, 3)))
        return logits


class Flipped(nn.Module):
    """Moves channels in a way whose shapes never fail."""

    def forward(self, maps: Tensor) -> Tensor:
        return maps.flip(1)


class Shuffled(nn.Module):
    """A channel shuffle by views, as ShuffleNet writes it."""

    def __init__(self, groups: int) -> None:
        super().__init__()
        self.groups = groups

    def forward(self, maps: Tensor) -> Tensor:
        batch, channels, height, width = maps.shape
        blocks = maps.view(batch, self.groups, channels // self.groups, height, width)
        return blocks.transpose(1, 2).reshape(batch, channels, height, width)


class Sorted(nn.Module):
    """Moves channels as their values say."""

    def forward(self, maps: Tensor) -> Tensor:
        return maps.sort(1).values


class CountsChannels(nn.Module):
    """Computes with the number of its channels, which no trace of tensors shows."""

    def forward(self, maps: Tensor) -> Tensor:
        return maps * maps.shape[1]


class Squeeze(nn.Module):
    """A squeeze-and-excite gate."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.reduce = nn.Conv2d(width, 4, 1)
        self.expand = nn.Conv2d(4, width, 1)

    def forward(self, maps: Tensor) -> Tensor:
        gate = self.expand(F.relu(self.reduce(maps.mean((2, 3), keepdim=True))))
        return maps * torch.sigmoid(gate)


class TwoBranches(nn.Module):
    """A product of two convolutions, neither computed from the other: no gate."""

    def __init__(self) -> None:
        super().__init__()
        self.left = nn.Conv2d(3, 8, 1)
        self.right = nn.Conv2d(3, 8, 1)
        self.last = nn.Conv2d(8, 6, 1)
        self.head = nn.Linear(6, 5)

    def forward(self, images: Tensor) -> Tensor:
        maps = self.last(self.left(images) * self.right(images))
        logits: Tensor = self.head(maps.mean((2, 3)))
        return logits
