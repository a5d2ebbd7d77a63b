"""The figure of the benchmark: the share of the best-known hypervolume along the cost."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib.pyplot as plt

from tests.benchmarks.search.sheet import Sheet


def draw_shares(sheets: Sequence[Sheet], costs: Sequence[float], path: Path) -> None:
    """Draws a panel for each sheet: the mean share of every searcher at each of the costs."""
    figure, axes = plt.subplots(
        1, len(sheets), figsize=(5 * len(sheets), 4), sharey=True, squeeze=False
    )
    names = list(dict.fromkeys(name for sheet in sheets for name in sheet.searchers))
    palette = plt.get_cmap("tab20", max(20, len(names)))
    for axis, sheet in zip(axes[0], sheets, strict=True):
        for name, shares in sheet.shares(costs).items():
            axis.plot(costs, shares, linewidth=1.5, color=palette(names.index(name)), label=name)
        axis.set_xscale("log")
        axis.set_title(f"{sheet.name}, {sheet.workers} worker{'s' if sheet.workers > 1 else ''}")
        axis.set_xlabel("training and evaluation FLOPs, in full-length runs")
    axes[0][0].set_ylabel("share of best-known hypervolume")
    axes[0][-1].legend(fontsize=7, loc="lower right")
    figure.tight_layout()
    figure.savefig(path)
    plt.close(figure)
