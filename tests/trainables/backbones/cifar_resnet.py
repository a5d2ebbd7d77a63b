"""A user's own architecture: the CIFAR ResNet, without anything that timm's models bring."""

import torch.nn.functional as F
from torch import Tensor, nn


def cifar_resnet(num_classes: int, depth: int = 8) -> "CifarResNet":
    """The CIFAR ResNet of He et al. with `depth` = 6n + 2 layers."""
    return CifarResNet(blocks=(depth - 2) // 6, classes=num_classes)


def with_a_spare_layer(num_classes: int) -> "CifarResNet":
    """The same with a layer that no image passes, so that it never has a gradient."""
    model = cifar_resnet(num_classes)
    model.spare = nn.Conv2d(3, 3, 1)
    return model


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
        logits: Tensor = self.linear(maps.mean((2, 3)))
        return logits

    @staticmethod
    def _stage(inputs: int, width: int, blocks: int) -> nn.Sequential:
        later = (CifarBlock(width, width) for _ in range(blocks - 1))
        return nn.Sequential(CifarBlock(inputs, width), *later)
