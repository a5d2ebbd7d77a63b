"""Figures of a sweep: the frontier, the curves, the importance of fields, the compute spent.

Every function returns a matplotlib `Figure` that belongs to no global state, and can be saved
with `save` or embedded with `png` and `svg`. The colours are by Okabe and Ito; people with colour
blindness can tell them apart.
"""

import io
import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby, zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any

from analysis import units
from analysis.frontier import Frontier
from analysis.importance import COMPUTE, UNFINISHED, Importance
from analysis.table import RECIPE, Rows, frontier_of, rows

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PRUNING_RATIO = "pruning_ratio"
"""The recipe's field that colours the measurements when trials differ in it."""

INK, MUTED, GRID, PAPER = "#1f2933", "#66717e", "#e4e7eb", "#ffffff"
"""Colours of text and lines, of secondary text, of the grid, and of the background."""
BLUE, ORANGE, VERMILLION, GREY = "#0072b2", "#e69f00", "#d55e00", "#9aa5b1"
STATE_COLOURS = {
    "complete": BLUE,
    "halved": GREY,
    "running": "#009e73",
    "diverged": ORANGE,
    "failed": VERMILLION,
    "infeasible": "#cc79a7",
}
"""Colour of a trial's state; other states are grey."""
METHOD_COLOURS = (BLUE, ORANGE, "#009e73", "#cc79a7", "#56b4e9", "#b8a500", INK)
"""Colours of the methods with most points on the frontier; other methods are grey."""

_NAMES = {COMPUTE: "training compute", UNFINISHED: "unfinished schedule"}
_WIDTH = 8.0  # inches; with 10-point type readable when shown 800 pixels wide


def plot_frontier(measurements: Rows, *, frontier: Frontier | None = None) -> "Figure":
    """Draws all measurements, the trials' curves, and the frontier, over training compute.

    Points are coloured by method where several compete, else by pruning ratio when trials differ
    in it. The frontier's test errors are drawn where they were measured; they choose nothing.
    """
    records = rows(measurements)
    frontier = frontier_of(records) if frontier is None else frontier
    figure, axes = _figure(height=4.9)
    _compute_axes(axes, records)
    for curve in _curves(records):
        axes.plot(*_xy(curve), color=GREY, linewidth=0.6, alpha=0.35, zorder=1)
    points = frontier.points
    colours = _method_colours(records, frontier)
    if colours:
        _scatter_methods(axes, records, colours)
    else:
        _scatter(figure, axes, records)
    if points:
        right = axes.get_xlim()[1]
        axes.plot(
            [*(p.train_flops for p in points), right],
            [100 * p.val_error for p in points] + [100 * points[-1].val_error],
            drawstyle="steps-post",
            color=VERMILLION,
            linewidth=2.2,
            solid_joinstyle="miter",
            zorder=4,
        )
        axes.plot(
            [p.train_flops for p in points],
            [100 * p.val_error for p in points],
            "o",
            color=VERMILLION,
            markeredgecolor=PAPER,
            markersize=10 if colours else 7.5,
            markeredgewidth=1.2,
            label="frontier (validation)",
            zorder=5,
        )
        if colours:
            axes.scatter(
                [p.train_flops for p in points],
                [100 * p.val_error for p in points],
                s=26,
                color=[colours[str(p.recipe["method"])] for p in points],
                linewidths=0,
                zorder=6,
            )
        tested = [(p.train_flops, 100 * p.test_error) for p in points if p.test_error is not None]
        if tested:
            axes.plot(
                *zip(*tested, strict=True),
                "_",
                color=INK,
                markersize=11,
                markeredgewidth=1.6,
                label="same models, test",
                zorder=6,
            )
        _legend(axes)
    return figure


def plot_curves(measurements: Rows) -> "Figure":
    """Draws every trial's validation error over compute, coloured by how the trial ended.

    Trials that own a point of the frontier are drawn bold; each rung's best carries its number.
    """
    records = rows(measurements)
    frontier = frontier_of(records)
    winners = {point.trial_id for point in frontier.points}
    figure, axes = _figure(height=4.6)
    _compute_axes(axes, records)
    for curve in _curves(records):
        wins = curve[0]["trial_id"] in winners
        axes.plot(
            *_xy(curve),
            color=STATE_COLOURS.get(curve[0]["trial_state"], GREY),
            linewidth=1.8 if wins else 0.8,
            alpha=1.0 if wins else 0.45,
            marker="o",
            markersize=3.4 if wins else 1.8,
            zorder=3 if wins else 2,
        )
    # Below the frontier nothing else is drawn, so the numbers are free to stand there.
    for point in {point.rung: point for point in frontier.points}.values():
        axes.annotate(
            f"#{point.number}",
            (point.train_flops, 100 * point.val_error),
            xytext=(0, -7),
            textcoords="offset points",
            ha="center",
            va="top",
            fontsize=9,
            color=MUTED,
        )
    seen = {row["trial_state"] for row in records}
    for state in sorted(seen, key=[*STATE_COLOURS, *sorted(seen)].index):
        axes.plot([], [], color=STATE_COLOURS.get(state, GREY), linewidth=2, label=state)
    if seen:
        _legend(axes)
    return figure


def plot_importance(importance: Importance) -> "Figure":
    """Draws the ranking as dots with their spread, or writes the reason why there is none."""
    fields = importance.fields[::-1]
    figure, axes = _figure(height=0.7 + 0.34 * max(3, len(fields)))
    if not fields:
        return _only_text(figure, axes, importance.reason or "Nothing was ranked.")
    at = range(len(fields))
    axes.axvline(0, color=MUTED, linewidth=0.8)
    axes.errorbar(
        [field.importance for field in fields],
        at,
        xerr=[field.spread for field in fields],
        fmt="none",
        ecolor=GREY,
        elinewidth=1.4,
    )
    axes.scatter(
        [field.importance for field in fields],
        at,
        s=46,
        zorder=3,
        color=[GREY if field.name == COMPUTE else BLUE for field in fields],
    )
    axes.set_yticks(at, [_NAMES.get(f.name, f.name.replace("_", " ")) for f in fields], color=INK)
    axes.set_ylim(-0.6, len(fields) - 0.4)
    axes.set_xlabel("Fall of R² when shuffled among held-out trials (mean ± s.d.)")
    axes.grid(visible=False, axis="y")
    return figure


def plot_spend(trials: Rows) -> "Figure":
    """Draws the training FLOPs that the sweep executed, by the state its trials are in now."""
    spent: dict[str, float] = {}
    number: dict[str, int] = {}
    for row in rows(trials):
        state = str(row["state"])
        spent[state] = spent.get(state, 0.0) + row["executed_flops"]
        number[state] = number.get(state, 0) + 1
    states = sorted(spent, key=lambda state: (spent[state], state))
    figure, axes = _figure(height=0.6 + 0.4 * max(2, len(states)))
    if not states:
        return _only_text(figure, axes, "No trial has been started.")
    total = sum(spent.values())
    axes.barh(
        states,
        [spent[state] for state in states],
        color=[STATE_COLOURS.get(state, GREY) for state in states],
        height=0.62,
    )
    for at, state in enumerate(states):
        share = spent[state] / total if total else 0.0
        noun = "trial" if number[state] == 1 else "trials"
        axes.annotate(
            f"{units.flops(spent[state])} · {_rounded(share)} · {number[state]} {noun}",
            (spent[state], at),
            xytext=(6, 0),
            textcoords="offset points",
            va="center",
            color=INK,
        )
    axes.set_xlim(0, 1.45 * max(spent.values()) or 1)
    axes.tick_params(axis="x", labelbottom=False)
    axes.tick_params(axis="y", labelcolor=INK)
    axes.grid(visible=False)
    axes.spines["bottom"].set_visible(False)
    return figure


def save(figure: "Figure", path: Path) -> None:
    """Writes the figure in the format of the path's ending: .png, .svg or .pdf."""
    figure.savefig(path, dpi=200)


def png(figure: "Figure") -> bytes:
    """Returns the figure as a PNG image, about 1,600 pixels wide."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=200)
    return buffer.getvalue()


def svg(figure: "Figure", *, name: str) -> str:
    """Returns the figure as an <svg> element that takes type and colours from its HTML page.

    Text stays text. The page may set `--ink`, `--muted`, `--grid`, `--paper` and `--blue`, so that
    one figure serves a light and a dark page. `name` must differ between the figures of a page, so
    that what they refer to by id does not clash.
    """
    import matplotlib as mpl

    buffer = io.StringIO()
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r"font: ([\d.]+)px [^;\"]*", r"font: \1px var(--sans, sans-serif)", text)
    named = {"ink": INK, "muted": MUTED, "grid": GRID, "paper": PAPER, "blue": BLUE}
    for variable, colour in named.items():
        text = text.replace(colour, f"var(--{variable}, {colour})")
    return text


def _figure(*, height: float) -> "tuple[Figure, Axes]":
    """Returns a figure with one pair of axes in the house style."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(_WIDTH, height), layout="constrained", facecolor=PAPER)
    axes = figure.add_subplot()
    axes.set_facecolor("none")
    axes.grid(visible=True, color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(MUTED)
    axes.tick_params(colors=MUTED, labelsize=10, length=0, which="both")
    for label in (axes.xaxis.label, axes.yaxis.label):
        label.set(color=INK, fontsize=10.5)
    return figure, axes


def _only_text(figure: "Figure", axes: "Axes", text: str) -> "Figure":
    axes.set_axis_off()
    axes.text(0.5, 0.5, text, ha="center", va="center", color=MUTED, transform=axes.transAxes)
    return figure


def _compute_axes(axes: "Axes", records: Sequence[Mapping[str, Any]]) -> None:
    """Sets log compute below, error in percent at the left, limits around the measurements."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    compute = [row["train_flops"] for row in records] or [1e9, 1e12]
    axes.set_xscale("log")
    if max(compute) < 30 * min(compute):  # too narrow to be read from powers of ten
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: units.flops(value)))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g} %"))
    axes.set_xlabel("Training compute")
    axes.set_ylabel("Validation error")
    worst = max((100 * row["val_error"] for row in records), default=100.0)
    axes.set_xlim(min(compute) / 1.35, max(compute) * 1.5)
    axes.set_ylim(0, min(104.0, 1.08 * worst) or 1.0)


def _scatter(figure: "Figure", axes: "Axes", records: Sequence[Mapping[str, Any]]) -> None:
    """Draws the measurements as light points: grey, or by pruning ratio with a colour bar."""
    from matplotlib.cm import ScalarMappable

    column = RECIPE + PRUNING_RATIO
    ratios = {row[column] for row in records if row.get(column) is not None}
    plain = [row for row in records if len(ratios) < 2 or row.get(column) is None]
    axes.scatter(*_xy(plain), s=14, color=GREY, alpha=0.55, linewidths=0, zorder=2)
    if len(ratios) < 2:
        return
    coloured = [row for row in records if row.get(column) is not None]
    dots = axes.scatter(
        *_xy(coloured),
        c=[row[column] for row in coloured],
        s=18,
        alpha=0.75,
        linewidths=0,
        cmap=_ratio_colours(),
        zorder=3,
    )
    opaque = ScalarMappable(norm=dots.norm, cmap=dots.cmap)
    bar = figure.colorbar(opaque, ax=axes, pad=0.02, fraction=0.035, aspect=32)
    bar.set_label("Pruning ratio", color=INK, fontsize=10.5)
    bar.outline.set_visible(False)
    bar.ax.tick_params(colors=MUTED, labelsize=10, length=0)


def _method_colours(records: Sequence[Mapping[str, Any]], frontier: Frontier) -> dict[str, str]:
    """Returns a colour for each method, most frontier points first; none if there is one method."""
    methods = sorted({str(row["method"]) for row in records})
    if len(methods) < 2:
        return {}
    won = [str(point.recipe["method"]) for point in frontier.points]
    ranked = sorted(methods, key=lambda method: -won.count(method))
    return dict(zip_longest(ranked, METHOD_COLOURS[: len(ranked)], fillvalue=GREY))


def _scatter_methods(
    axes: "Axes", records: Sequence[Mapping[str, Any]], colours: Mapping[str, str]
) -> None:
    """Draws the measurements as light points in their method's colour, with legend entries."""
    for method, colour in reversed(list(colours.items())):
        own = [row for row in records if row["method"] == method]
        axes.scatter(
            *_xy(own), s=18, color=colour, alpha=0.6, linewidths=0, zorder=2 + (colour != GREY)
        )
    for method, colour in colours.items():
        if colour != GREY:
            axes.scatter([], [], s=30, color=colour, label=method.replace("_", " "))
    if GREY in colours.values():
        axes.scatter([], [], s=30, color=GREY, label="other methods")


def _ratio_colours() -> Any:
    """Returns viridis without its ends, which vanish on black and on white paper."""
    import matplotlib as mpl
    from matplotlib.colors import LinearSegmentedColormap

    middle = mpl.colormaps["viridis"]([0.22 + 0.70 * i / 63 for i in range(64)])
    return LinearSegmentedColormap.from_list("pruning_ratio", middle)


def _legend(axes: "Axes") -> Any:
    return axes.legend(frameon=False, labelcolor=INK, fontsize=10, loc="upper right")


def _curves(records: Iterable[Mapping[str, Any]]) -> list[list[Mapping[str, Any]]]:
    """Returns each trial's measurements in order of compute."""

    def trial(row: Mapping[str, Any]) -> tuple[int, str]:
        return row["number"], row["trial_id"]

    ordered = sorted(records, key=lambda row: (*trial(row), row["train_flops"]))
    return [list(curve) for _, curve in groupby(ordered, key=trial)]


def _rounded(share: float) -> str:
    """Returns whole percent, and "< 1 %" rather than "0 %" of something."""
    return "< 1 %" if 0 < share < 0.005 else f"{100 * share:.0f} %"


def _xy(records: Sequence[Mapping[str, Any]]) -> tuple[list[float], list[float]]:
    """Returns training FLOPs and validation error in percent."""
    return (
        [row["train_flops"] for row in records],
        [100 * row["val_error"] for row in records],
    )
