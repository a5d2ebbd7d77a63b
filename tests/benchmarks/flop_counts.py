"""The FLOP meter against others: fvcore's counter forward, a calculation by hand backward.

fvcore traces the model and counts one FLOP a multiply-accumulate with formulas of its own, where
the meter watches the dispatcher. Both must agree to the last multiply-accumulate on convolutions
and matrix products; fvcore's estimates for norms and pooling, which the meter leaves out by its
definition, are left out here too.
"""

import warnings
from typing import Any

import timm
import torch
from torch import nn

from tests.benchmarks.publish import publish
from trainables.costs.flops import count_flops

MODELS = (
    "resnet18",
    "resnet50",
    "resnext50_32x4d",
    "wide_resnet50_2",
    "seresnet50",
    "ecaresnet26t",
    "regnety_002",
    "densenet121",
    "vgg11_bn",
    "mobilenetv1_100",
    "mobilenetv2_100",
    "mobilenetv3_small_100",
    "mobilenetv4_conv_small",
    "efficientnet_b0",
    "tf_efficientnetv2_b0",
    "ghostnet_100",
    "convnext_atto",
    "dm_nfnet_f0",
    "hrnet_w18_small",
    "dla34",
)
RESOLUTION = 224
_COUNTED = frozenset({"conv", "linear", "matmul", "bmm", "einsum", "baddbmm"})


def main() -> None:
    """Counts both ways and prints the tables."""
    forward = [compare_forward(name) for name in MODELS]
    backward = [compare_backward(frozen) for frozen in range(len(LAYER_MACS) + 1)]
    wrong = [row for row in forward + backward if row["ratio"] != 1]
    result = {
        "what": f"{len(MODELS)} timm models, forward at {RESOLUTION} px against fvcore; the "
        "training step of five layers against a calculation by hand, each prefix frozen",
        "largest_deviation": max(abs(row["ratio"] - 1) for row in forward + backward),
        "disagreements": len(wrong),
        "forward": forward,
        "backward": backward,
    }
    publish("flop_counts", title="FLOPs against an independent counter", result=result)


def compare_forward(name: str) -> dict[str, Any]:
    """Multiply-accumulates of one image through the timm model `name`, by both counters."""
    model = timm.create_model(name).eval()
    ours = count_flops(model, resolution=RESOLUTION).forward_flops / 2
    theirs = fvcore_macs(model, resolution=RESOLUTION)
    return {
        "model": name,
        "meter_gmacs": round(ours / 1e9, 4),
        "fvcore_gmacs": round(theirs / 1e9, 4),
        "ratio": ours / theirs,
    }


def fvcore_macs(model: nn.Module, *, resolution: int) -> int:
    """Multiply-accumulates of the convolutions and matrix products of one image, by fvcore."""
    with warnings.catch_warnings():
        # fvcore 0.1.5 scripts a loss while it is imported, which PyTorch 2.15 calls deprecated.
        warnings.simplefilter("ignore", FutureWarning)
        from fvcore.nn import FlopCountAnalysis

    analysis = FlopCountAnalysis(model, torch.zeros(1, 3, resolution, resolution))
    analysis.unsupported_ops_warnings(enabled=False).uncalled_modules_warnings(enabled=False)
    return int(sum(macs for kind, macs in analysis.by_operator().items() if kind in _COUNTED))


def five_layers() -> nn.Sequential:
    """A net whose costs a hand can compute: plain, grouped, depthwise, pointwise and dense."""
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, stride=2, padding=1, bias=False),
        nn.Conv2d(16, 32, 3, padding=1, groups=4, bias=False),
        nn.Conv2d(32, 32, 3, padding=1, groups=32, bias=False),
        nn.Sequential(nn.Conv2d(32, 64, 1, bias=False), nn.AdaptiveAvgPool2d(1), nn.Flatten()),
        nn.Linear(64, 10),
    )


LAYER_MACS = (
    (16 * 16) * 9 * 3 * 16,
    (16 * 16) * 9 * (16 // 4) * 32,
    (16 * 16) * 9 * 32,
    (16 * 16) * 32 * 64,
    64 * 10,
)
"""MACs of the layers on an image of 32 pixels: places × kernel × group's channels × filters."""


def compare_backward(frozen: int) -> dict[str, Any]:
    """FLOPs of a training step of the five layers with the first `frozen` of them frozen.

    By hand: each layer's forward, once more for its weight's gradient if it is trained, and once
    more for its input's if a layer before it is.
    """
    net = five_layers()
    for layer in net[:frozen]:
        layer.requires_grad_(requires_grad=False)
    ours = count_flops(net, resolution=32).train_flops
    by_hand = sum(
        2 * macs * (1 + (index >= frozen) + (index > frozen))
        for index, macs in enumerate(LAYER_MACS)
    )
    return {"frozen_layers": frozen, "meter": ours, "by_hand": by_hand, "ratio": ours / by_hand}


if __name__ == "__main__":
    main()
