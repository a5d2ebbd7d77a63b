"""Figures draw what they claim, in every format, also from nothing or a single point."""

import re
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.patches import Rectangle

from analysis import plots
from analysis.importance import Importance, recipe_importance
from analysis.table import frontier_of
from tests.analysis.sweeps import sweep
from tests.known import known


@pytest.fixture(scope="module")
def measurements() -> list[dict[str, Any]]:
    return sweep(24)[0]


def test_the_frontier_is_drawn_through_its_points(measurements: list[dict[str, Any]]) -> None:
    points = frontier_of(measurements).points
    axes = plots.plot_frontier(measurements).axes[0]
    drawn = {line.get_label(): np.asarray(line.get_xydata()) for line in axes.lines}
    assert drawn["frontier (validation)"].tolist() == [
        [p.train_flops, 100 * p.val_error] for p in points
    ]
    assert drawn["same models, test"].tolist() == [
        [p.train_flops, 100 * p.test_error] for p in points if p.test_error is not None
    ]
    assert axes.get_xscale() == "log"


def test_measurements_are_coloured_by_pruning_ratio_when_trials_differ_in_it(
    measurements: list[dict[str, Any]],
) -> None:
    ratio = f"recipe.{plots.PRUNING_RATIO}"
    pruned = [row for row in measurements if row["method"] == "filter_pruning"]
    dense = [{k: v for k, v in row.items() if k != ratio} for row in pruned[:3]]
    axes, bar = plots.plot_frontier(dense + pruned[3:]).axes
    plain, coloured = axes.collections
    assert known(coloured.get_array()).tolist() == [row[ratio] for row in pruned[3:]]
    assert len(np.asarray(plain.get_offsets())) == len(dense)
    assert bar.get_ylabel() == "Pruning ratio"
    same = [row | {ratio: 0.5} for row in pruned]
    assert len(plots.plot_frontier(same).axes) == 1


def test_several_methods_have_a_colour_each_and_the_frontier_shows_whose_points_are(
    measurements: list[dict[str, Any]],
) -> None:
    names = [f"method_{row['number'] % 30}" for row in measurements]
    many = [
        row | {"method": name, "recipe.method": name}
        for row, name in zip(measurements, names, strict=True)
    ]
    frontier = frontier_of(many)
    (axes,) = plots.plot_frontier(many).axes
    legend = [text.get_text() for text in known(axes.get_legend()).get_texts()]
    won = [str(point.recipe["method"]) for point in frontier.points]
    winners = sorted(set(won), key=won.count)[-len(plots.METHOD_COLOURS) :]
    assert len(set(won)) > len(winners) > 3, "more than there are colours"
    named, others = set(legend[: len(plots.METHOD_COLOURS)]), legend[len(plots.METHOD_COLOURS)]
    assert {w.replace("_", " ") for w in winners if won.count(w) > 1} <= named
    assert others == "other methods"
    (fills,) = (c for c in axes.collections if len(np.asarray(c.get_offsets())) == len(won))
    colours = [mpl.colors.to_hex(colour) for colour in np.asarray(fills.get_facecolor())]
    for method in set(won):
        own = {colour for m, colour in zip(won, colours, strict=True) if m == method}
        assert len(own) == 1
        assert (own == {plots.GREY}) == (method.replace("_", " ") not in named)


def test_each_rungs_best_curve_carries_its_number(measurements: list[dict[str, Any]]) -> None:
    points = frontier_of(measurements).points
    axes = plots.plot_curves(measurements).axes[0]
    best = {point.rung: f"#{point.number}" for point in points}
    assert [text.get_text() for text in axes.texts] == list(best.values())
    states = {row["trial_state"] for row in measurements}
    assert {text.get_text() for text in known(axes.get_legend()).get_texts()} == states


def test_spend_is_the_executed_compute_by_state() -> None:
    _, trials = sweep(24)
    axes = plots.plot_spend(trials).axes[0]
    total = sum(row["executed_flops"] for row in trials)
    bars = [patch for patch in axes.patches if isinstance(patch, Rectangle)]
    assert sum(bar.get_width() for bar in bars) == pytest.approx(total)
    labels = [text.get_text() for text in axes.texts]
    assert "3 GFLOPs · < 1 % · 1 trial" in labels  # the one that failed
    assert "0 FLOPs · 0 % · 1 trial" in labels  # the one that was infeasible


@pytest.mark.parametrize("count", [0, 1])
def test_nothing_and_a_single_measurement_can_be_drawn(
    measurements: list[dict[str, Any]], count: int
) -> None:
    few = measurements[:count]
    assert plots.png(plots.plot_frontier(few)).startswith(b"\x89PNG")
    assert plots.png(plots.plot_curves(few)).startswith(b"\x89PNG")
    assert plots.png(plots.plot_spend(sweep(count)[1])).startswith(b"\x89PNG")


def test_a_ranking_that_is_not_there_says_why() -> None:
    figure = plots.plot_importance(Importance(trials=3, reason="3 trials were measured."))
    assert [text.get_text() for text in figure.axes[0].texts] == ["3 trials were measured."]


def test_importance_is_drawn_from_the_top(measurements: list[dict[str, Any]]) -> None:
    importance = recipe_importance(measurements)
    axes = plots.plot_importance(importance).axes[0]
    xs = [x for x, _ in np.asarray(axes.collections[-1].get_offsets()).tolist()]
    assert xs[::-1] == [field.importance for field in importance.fields]
    assert "training compute" in [label.get_text() for label in axes.get_yticklabels()]


def test_svg_is_one_element_without_links_and_in_the_pages_colours(
    measurements: list[dict[str, Any]],
) -> None:
    text = plots.svg(plots.plot_frontier(measurements), name="a")
    assert ET.fromstring(text).tag.endswith("svg")
    assert "<metadata" not in text
    assert f"var(--ink, {plots.INK})" in text
    assert ">Training compute</text>" in text
    assert plots.svg(plots.plot_frontier(measurements), name="a") == text

    other = plots.svg(plots.plot_frontier(measurements), name="b")
    assert _referred_ids(text)
    assert _referred_ids(text).isdisjoint(_referred_ids(other))


def _referred_ids(svg: str) -> set[str]:
    return {*re.findall(r"url\(#([^)]+)\)", svg), *re.findall(r'href="#([^"]+)"', svg)}


def test_save_writes_the_format_of_the_ending(
    tmp_path: Path, measurements: list[dict[str, Any]]
) -> None:
    figure = plots.plot_frontier(measurements)
    for ending, magic in (("png", b"\x89PNG"), ("svg", b"<?xml"), ("pdf", b"%PDF")):
        plots.save(figure, tmp_path / f"frontier.{ending}")
        assert (tmp_path / f"frontier.{ending}").read_bytes().startswith(magic)


def test_importing_analysis_loads_nothing_heavy() -> None:
    code = (
        "import sys, analysis.plots, analysis.report, analysis.importance, analysis.table\n"
        "heavy = {'torch', 'ray', 'mlflow', 'optuna', 'matplotlib', 'sklearn', 'pandas'}\n"
        "print(*sorted(heavy & set(sys.modules)))"
    )
    found = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert found.stdout.split() == []
