"""The report of a sweep: one self-contained HTML page."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from analysis import plots, units
from analysis.frontier import Frontier, FrontierPoint
from analysis.importance import Importance, recipe_importance
from analysis.table import (
    MissingTableError,
    Row,
    Rows,
    Source,
    frontier_of,
    parameters_of,
    read_measurements,
    read_trials,
    rows,
)
from search_spaces.recipe import Setting
from trainables.errors import UserError

CONFIG_PATH = "sweep.yaml"
"""The place of the sweep's configuration in its folder."""
UNSUCCESSFUL = ("failed", "infeasible", "diverged")
"""States whose reasons the report lists."""


class MissingSweepError(UserError):
    """A folder holds no sweep, or its configuration cannot be read; the message says which."""


def write_report(sweep_folder: Path, output: Path, *, tables: Source | None = None) -> None:
    """Writes the report of the sweep in `sweep_folder` to `output`, replacing what is there.

    Reads `sweep.yaml` there, and `measurements/` and `trials.parquet` from `tables`, or from the
    folder when that is left out. If nothing was measured yet, the page says so. The page links to
    nothing, runs no script and escapes everything it shows.
    """
    page = render(sweep_folder, tables=tables)
    output.parent.mkdir(parents=True, exist_ok=True)
    unfinished = output.with_name(f".{output.name}.unfinished")
    unfinished.write_text(page, encoding="utf-8")
    unfinished.replace(output)


def render(sweep_folder: Path, *, tables: Source | None = None) -> str:
    """Returns the report as HTML, as `write_report` writes it.

    Raises `MissingSweepError` when the folder holds no sweep.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    config_text, config = _config(sweep_folder)
    tables = sweep_folder if tables is None else tables
    measurements = _rows_or_none_yet(read_measurements, tables)
    trials = _rows_or_none_yet(read_trials, tables)
    frontier = frontier_of(measurements)
    importance = recipe_importance(measurements)
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "flops": units.flops,
        "count": units.count,
        "percent": units.percent,
        "setting": _setting,
    }
    return environment.get_template("report.html").render(
        name=str(config.get("name") or sweep_folder.name),
        facts=_facts(config),
        totals=_totals(measurements, trials, frontier, config),
        states=_states(trials),
        blue=plots.BLUE,
        headline=_headline(frontier, measurements),
        points=frontier.points,
        shrunk=_is_shrunk(frontier),
        confirmed=frontier.confirmed,
        recipe_fields=_varying_fields(frontier.points),
        renamed=_renamed(tables),
        importance=importance,
        figures=_figures(measurements, trials, frontier, importance),
        unsuccessful=[row for row in trials if row["state"] in UNSUCCESSFUL],
        config_text=config_text,
    )


def _config(sweep_folder: Path) -> tuple[str, Mapping[str, Any]]:
    """Returns the configuration as it was written, and as a mapping."""
    path = sweep_folder / CONFIG_PATH
    if not path.is_file():
        raise MissingSweepError(
            f"{sweep_folder} holds no {CONFIG_PATH}; give the folder of a sweep."
        )
    try:
        text = path.read_text(encoding="utf-8")
        config = yaml.safe_load(text)
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        raise MissingSweepError(f"{path} is not readable YAML: {error}") from error
    if not isinstance(config, dict):
        raise MissingSweepError(f"{path} must hold a mapping of settings, as a sweep writes it.")
    return text, config


def _rows_or_none_yet(read: Callable[[Source], Rows], tables: Source) -> list[dict[str, Any]]:
    try:
        return rows(read(tables))
    except MissingTableError:
        return []  # a sweep that has just begun; the page says that nothing was measured


def _renamed(tables: Source) -> dict[str, list[str]]:
    """Returns what `parameters_of` does, and nothing where there are no trials yet."""
    try:
        return parameters_of(read_trials(tables))
    except MissingTableError:
        return {}


def _facts(config: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Returns the sweep's subject as (label, text), as far as the configuration tells it."""
    task, backbone = _section(config, "task"), _section(config, "backbone")
    budget = _section(config, "budget")
    facts = {
        "Task": task.get("source"),
        "Backbone": backbone.get("model"),
        "Weights": backbone.get("weights"),
        "Budget": ", ".join(
            f"{name.replace('_', ' ')} {_setting(value, name)}"
            for name, value in budget.items()
            if value is not None
        ),
        "Rungs": _rungs(_section(config, "rungs")),
        "Seed": config.get("seed"),
    }
    return [(label, str(value)) for label, value in facts.items() if value not in (None, "")]


def _rungs(rungs: Mapping[str, Any]) -> str | None:
    if not {"min_flops", "max_flops", "per_decade"} <= rungs.keys():
        return None
    low, high = (_setting(rungs[name], name) for name in ("min_flops", "max_flops"))
    return f"{low} to {high}, {rungs['per_decade']} per decade"


def _section(config: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    section = config.get(name)
    return section if isinstance(section, dict) else {}


def _totals(
    measurements: Sequence[Row],
    trials: Sequence[Row],
    frontier: Frontier,
    config: Mapping[str, Any],
) -> list[tuple[str, str]]:
    """Returns the sweep in a few numbers, as (text, label)."""
    totals = [
        (str(len(trials)), "trial" if len(trials) == 1 else "trials"),
        (str(len(measurements)), "measurements"),
        (str(len(frontier.points)), "frontier points"),
        (units.flops(sum(row["executed_flops"] for row in trials)), "training, all trials"),
    ]
    if _is_shrunk(frontier):
        confirmed = f"{frontier.confirmed} of {len(frontier.points)}"
        totals.insert(3, (confirmed, "points confirmed"))
    starts = [row["suggested_at"] for row in trials]
    ends = [row["finished_at"] for row in trials if row["finished_at"] is not None]
    ends += [row["measured_at"] for row in measurements]
    if starts and ends:
        totals.append((units.duration(max(ends) - min(starts)), "wall time, first to last"))
    limit = _number(_section(config, "rungs").get("max_flops"))
    if frontier.points and limit:
        volume = frontier.hypervolume(reference_flops=limit)
        totals.append((f"{volume:.3f}", f"hypervolume to {units.flops(limit)}"))
    return totals


def _is_shrunk(frontier: Frontier) -> bool:
    """Tells whether any error is expected to differ; sweeps of earlier versions know of none."""
    return any(point.expected_error is not None for point in frontier.points)


def _states(trials: Sequence[Row]) -> list[tuple[str, int, str]]:
    """Returns (state, number of trials, colour), the states in their usual order."""
    counts: dict[str, int] = {}
    for row in trials:
        counts[row["state"]] = counts.get(row["state"], 0) + 1
    order = [*plots.STATE_COLOURS, *sorted(counts)]
    return [
        (state, counts[state], plots.STATE_COLOURS.get(state, plots.GREY))
        for state in sorted(counts, key=order.index)
    ]


def _headline(frontier: Frontier, measurements: Sequence[Row]) -> str:
    if not frontier.points:
        return "No trial has been measured yet, so there is no frontier."
    cheapest, best = frontier.points[0], frontier.points[-1]
    if cheapest is best:
        return (
            f"One point beats or equals all others: {units.percent(best.val_error)} validation "
            f"error for {units.flops(best.train_flops)} of training."
        )
    return (
        f"From {units.percent(cheapest.val_error)} validation error for "
        f"{units.flops(cheapest.train_flops)} of training to {units.percent(best.val_error)} for "
        f"{units.flops(best.train_flops)}: the {len(frontier.points)} of {len(measurements)} "
        "measurements that no other beats on both."
    )


def _varying_fields(points: Sequence[FrontierPoint]) -> list[str]:
    """Returns the fields that get a column: the method, and those that differ between points."""
    names = sorted({name for point in points for name in point.recipe} - {"method"})
    varying = [n for n in names if len({point.recipe.get(n) for point in points}) > 1]
    return ["method", *varying] if points else []


def _setting(value: Setting | None, name: str) -> str:
    """Returns a setting as people read it, with the unit that its name tells."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if name.endswith("flops") and (number := _number(value)) is not None:
        return units.flops(number)
    if isinstance(value, str):
        return value
    if name.endswith("seconds"):
        return units.duration(value)
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _number(value: object) -> float | None:
    """Returns the number that a setting holds, if any; YAML 1.1 reads `1e14` as text."""
    try:
        return float(value) if isinstance(value, int | float | str) else None
    except ValueError:
        return None


def _figures(
    measurements: Sequence[Row],
    trials: Sequence[Row],
    frontier: Frontier,
    importance: Importance,
) -> dict[str, Any]:
    """Returns <svg> elements by name, marked as safe: the drawing escapes its own text."""
    from markupsafe import Markup

    drawn = {}
    if measurements:
        drawn["frontier"] = plots.plot_frontier(measurements, frontier=frontier)
        drawn["curves"] = plots.plot_curves(measurements)
    if importance.fields:
        drawn["importance"] = plots.plot_importance(importance)
    if trials:
        drawn["spend"] = plots.plot_spend(trials)
    return {name: Markup(plots.svg(figure, name=name)) for name, figure in drawn.items()}
