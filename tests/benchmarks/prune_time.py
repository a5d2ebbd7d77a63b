"""Time to prune ResNet-50 at 224 pixels, compared with Torch-Pruning called plainly.

Ours finds the channels, chooses, proves on random weights that the cuts are sound, and cuts; of
these, an actor's next trial on the same backbone finds graph and proof in memory. Torch-Pruning
builds its graph and prunes by magnitude, without a proof.
"""

import statistics
import time
from collections.abc import Callable

import timm
import torch
import torch_pruning
from torch import nn

from tests.benchmarks.publish import publish
from trainables.pruning import Criterion, PruningPlan, WidthRule, prune

MODEL = "resnet50"
RESOLUTION = 224
RATIO = 0.5
REPEATS = 9


def main() -> None:
    """Interleaves the three, a fresh model each time, and publishes medians."""
    seconds: dict[str, list[float]] = {"torch_pruning": [], "cold": [], "warm": []}
    for repeat in range(REPEATS + 1):
        classes = 1000 + repeat  # a structure that no cache has seen
        rows = {
            "torch_pruning": timed(plainly_pruned, model(classes)),
            "cold": timed(pruned, model(classes)),
            "warm": timed(pruned, model(classes)),
        }
        if repeat:  # the first pays for lazy imports
            for name, value in rows.items():
                seconds[name].append(value)
    plain = seconds["torch_pruning"]
    result = {
        "what": f"{MODEL}, {RESOLUTION} px, ratio {RATIO}, width rule all; medians of {REPEATS} "
        f"interleaved runs, ratios within each run, {torch.get_num_threads()} threads",
        "torch_pruning_version": torch_pruning.__version__,
        **{f"{name}_seconds": round(statistics.median(s), 3) for name, s in seconds.items()},
        **{
            f"{name}_over_torch_pruning": round(
                statistics.median(a / b for a, b in zip(seconds[name], plain, strict=True)), 3
            )
            for name in ("cold", "warm")
        },
        "runs": [
            {name: round(values[repeat], 3) for name, values in seconds.items()}
            for repeat in range(REPEATS)
        ],
    }
    publish("prune_time", title="Time to prune ResNet-50", result=result)


def model(classes: int) -> nn.Module:
    """A dense model with random weights."""
    net: nn.Module = timm.create_model(MODEL, num_classes=classes)
    return net.eval()


def timed(job: Callable[[nn.Module], None], net: nn.Module) -> float:
    """Seconds that `job` takes."""
    start = time.perf_counter()
    job(net)
    return time.perf_counter() - start


def pruned(net: nn.Module) -> None:
    """Prunes `net` as a trial does."""
    plan = PruningPlan(ratio=RATIO, width_rule=WidthRule.ALL, criterion=Criterion.L2)
    prune(net, plan, head="fc", resolution=RESOLUTION, seed=0)


def plainly_pruned(net: nn.Module) -> None:
    """Prunes `net` as Torch-Pruning's documentation does."""
    pruner = torch_pruning.pruner.MagnitudePruner(
        net,
        torch.randn(1, 3, RESOLUTION, RESOLUTION),
        importance=torch_pruning.importance.MagnitudeImportance(p=2),
        pruning_ratio=RATIO,
        ignored_layers=[net.get_submodule("fc")],
    )
    pruner.step()


if __name__ == "__main__":
    main()
