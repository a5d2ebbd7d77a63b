"""A user's own architecture: the CIFAR ResNet, without anything that timm's models bring."""

from pruning_nets import CifarResNet


def cifar_resnet(num_classes: int, depth: int = 8) -> CifarResNet:
    """The CIFAR ResNet of He et al. with `depth` = 6n + 2 layers."""
    return CifarResNet(blocks=(depth - 2) // 6, classes=num_classes)
