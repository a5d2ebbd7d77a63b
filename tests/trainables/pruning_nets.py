"""Small networks that the pruning tests share, each with a shape of graph that timm's lack."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class CifarBlock(nn.Module):
    """A basic block whose shortcut has no parameters: it subsamples and pads channels by zeros."""

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        stride = 1 if inputs == width else 2
        self.conv1 = nn.Conv2d(inputs, width, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.padding = (width - inputs) // 2

    def forward(self, maps: Tensor) -> Tensor:
        inner = F.relu(self.bn1(self.conv1(maps)))
        if self.padding:
            maps = F.pad(maps[:, :, ::2, ::2], (0, 0, 0, 0, self.padding, self.padding))
        return F.relu(self.bn2(self.conv2(inner)) + maps)


class CifarResNet(nn.Module):
    """The CIFAR ResNet of He et al. with 6n + 2 layers; no timm attributes."""

    def __init__(self, blocks: int = 1, classes: int = 10) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = self._stage(16, 16, blocks)
        self.layer2 = self._stage(16, 32, blocks)
        self.layer3 = self._stage(32, 64, blocks)
        self.linear = nn.Linear(64, classes)

    def forward(self, images: Tensor) -> Tensor:
        maps = F.relu(self.bn1(self.conv1(images)))
        maps = self.layer3(self.layer2(self.layer1(maps)))
        return self.linear(maps.mean((2, 3)))

    @staticmethod
    def _stage(inputs: int, width: int, blocks: int) -> nn.Sequential:
        later = (CifarBlock(width, width) for _ in range(blocks - 1))
        return nn.Sequential(CifarBlock(inputs, width), *later)


class Chain(nn.Module):
    """Two convolutions and a classifier, with `between` the convolutions."""

    def __init__(self, between: nn.Module, *, width: int = 8, groups: int = 1) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, width, 3, padding=1)
        self.between = between
        self.second = nn.Conv2d(width, 12, 3, padding=1, groups=groups)
        self.head = nn.Linear(12, 5)

    def forward(self, images: Tensor) -> Tensor:
        maps = F.relu(self.second(self.between(F.relu(self.first(images)))))
        return self.head(maps.mean((2, 3)))


class ChannelShuffle(nn.Module):
    """Moves channels in a way whose shapes never fail: an operation unknown to the engine."""

    def forward(self, maps: Tensor) -> Tensor:
        return maps.flip(1)


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
        return self.head(self.last(self.left(images) * self.right(images)).mean((2, 3)))
