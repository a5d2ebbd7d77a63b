"""Measures how far a frontier's errors are from those on other images, as measured and as expected.

    python -m tests.benchmarks.search.honesty --seeds 5

For every rung the point is taken that a user gets who asks for the best within the rung's level. A
gap is its error on other images less the error that is shown. Every search is replayed twice,
seeing one half of the validation images and then the other, so that what tells the halves apart
cancels in the gap to the other half. The gap to the test images has in it that they are harder, or
easier, for all recipes. Besides the race it tells the same of random sets of recipes with all their
curves, which are many more.

Reseeded runs are not replayed, because most recipes were recorded with one seed. The rest of the
table is of those with two: how far a model's error on the other half is from its own, from the
product's mean of its own and that of the other seed, and from the plain mean of both.
"""

import argparse
import json
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
from numpy.typing import NDArray

from analysis.frontier import non_dominated, non_increasing
from analysis.shrinkage import CONFIRMING_WEIGHT, Shrinkage
from tests.benchmarks.search.replay import Event, Setting
from tests.benchmarks.search.searchers import SEARCHERS
from tests.benchmarks.search.tables import Curve, CurveTable, Point, load_table, recorded_tasks

RESULT = Path(__file__).parents[1] / "results" / "honesty.json"
SEARCHER = "race_random"
BUDGET = 10.0
"""Training FLOPs of a replayed search, in full-length runs."""
RECIPES = 30
"""Recipes of a random set."""
SETS = 20

COLUMNS = ("gap_to_other_half", "gap_to_test", "test_error")
"""Means over the rungs, which are told before and after."""

Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Points:
    """What a search has measured, each point once; all of shape [points]."""

    rungs: NDArray[np.int64]
    train_flops: Floats
    seen: Floats
    """Error on the half that the search saw."""
    other: Floats
    """Error on the other half."""
    test: Floats
    images: int

    @property
    def expected(self) -> Floats:
        """What the product makes of the errors that it saw."""
        expected = np.empty_like(self.seen)
        for rung in np.unique(self.rungs):
            here = np.flatnonzero(self.rungs == rung)
            shrunk = Shrinkage(self.seen[here].tolist(), images=self.images)
            expected[here] = [shrunk.expected(float(error)) for error in self.seen[here]]
        frontier = non_dominated(self.train_flops, self.seen)
        expected[frontier] = non_increasing(expected[frontier].tolist())
        return expected

    @property
    def chosen(self) -> NDArray[np.intp]:
        """For every rung the most accurate point of the frontier up to it."""
        frontier = non_dominated(self.train_flops, self.seen)
        reached = [self.rungs[frontier] <= rung for rung in np.unique(self.rungs)]
        return np.array([frontier[np.flatnonzero(within)[-1]] for within in reached])


def main() -> None:
    """Measures, prints a row a task and writes the result."""
    parser = argparse.ArgumentParser(description="The gap between shown errors and held-out ones.")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=RESULT)
    arguments = parser.parse_args()
    rows = []
    for task in recorded_tasks():
        table = load_table(task)
        sides = [table, _swapped(table)]
        replays = [
            _points(side, _replayed(side, seed))
            for side in sides
            for seed in range(arguments.seeds)
        ]
        drawn = [_points(side, _drawn(side, seed)) for side in sides for seed in range(SETS)]
        rows.append(
            {
                "task": task,
                "recipes": len(table.entries),
                "race": _row(replays),
                "random recipes": _row(drawn),
                "reseeded": _reseeded(sides),
            }
        )
        print(json.dumps(rows[-1], indent=2), flush=True)
    settings = {"searcher": SEARCHER, "budget": BUDGET, "seeds": arguments.seeds}
    arguments.out.write_text(json.dumps({"settings": settings, "tasks": rows}, indent=2) + "\n")
    print(_table(rows))


def _row(searches: Sequence[Points]) -> dict[str, dict[str, float]]:
    """The mean over searches and rungs, before and after."""
    told: dict[str, list[tuple[float, ...]]] = {"measured": [], "expected": []}
    for points in searches:
        for name, errors in (("measured", points.seen), ("expected", points.expected)):
            chosen = points.chosen
            other, test, shown = points.other[chosen], points.test[chosen], errors[chosen]
            told[name].append(
                (float(np.mean(other - shown)), float(np.mean(test - shown)), float(test.mean()))
            )
    return {
        name: {
            key: round(fmean(v), 5) for key, v in zip(COLUMNS, zip(*rows, strict=True), strict=True)
        }
        for name, rows in told.items()
    }


def _reseeded(sides: Iterable[CurveTable]) -> dict[str, float]:
    """Root mean squares of how far errors on the other half are from what is known of a model.

    Only of recipes that are better than guessing, and without the difference of the halves' means.
    """
    squares: dict[str, list[float]] = {"one run": [], "two runs": [], "mean of two": []}
    weight = CONFIRMING_WEIGHT / (1 + CONFIRMING_WEIGHT)
    for table in sides:
        errors = np.array(list(_pairs(table))).reshape(-1, 3)
        own, again, other = errors[errors[:, :2].mean(axis=1) < 0.9 * table.chance_error].T
        for name, share in zip(squares, (0.0, weight, 0.5), strict=True):
            apart = (1 - share) * own + share * again - other
            squares[name] += ((apart - apart.mean()) ** 2).tolist() if apart.size else []
    if not squares["one run"]:
        return {"models": 0}
    told = {name: round(fmean(known) ** 0.5, 5) for name, known in squares.items()}
    return told | {"models": len(squares["one run"])}


def _pairs(table: CurveTable) -> Iterator[tuple[float, float, float]]:
    """The error of a model, that of the same recipe with another seed, and its own elsewhere."""
    for (number, rung, seed), curve in table.curves.items():
        again = table.curves.get((number, rung, 1 - seed))
        for one, two in zip(curve.points, again.points if again else (), strict=False):
            yield one.measurement.val_error, two.measurement.val_error, one.error_b


def _replayed(table: CurveTable, seed: int) -> list[Event]:
    with tempfile.TemporaryDirectory() as folder:
        setting = Setting(
            table=table,
            seed=seed,
            workers=1,
            budget_flops=BUDGET * table.levels[-1],
            folder=Path(folder),
        )
        return SEARCHERS[SEARCHER](setting)


def _points(table: CurveTable, found: Iterable[Event | Point]) -> Points:
    """The points without those that a search met twice."""
    rows = {
        (
            point.measurement.rung,
            point.measurement.train_flops,
            point.measurement.val_error,
            point.error_b,
            point.test_error,
        )
        if isinstance(point, Point)
        else (point.rung, point.train_flops, point.error_a, point.error_b, point.test_error)
        for point in found
    }
    rungs, flops, seen, other, test = (np.array(c) for c in zip(*sorted(rows), strict=True))
    assert table.images is not None  # the recorded tasks have images
    return Points(
        rungs=rungs, train_flops=flops, seen=seen, other=other, test=test, images=table.images
    )


def _drawn(table: CurveTable, seed: int) -> list[Point]:
    """All points of a random set of recipes."""
    numbers = [entry.number for entry in table.entries]
    drawn = set(np.random.default_rng(seed).permutation(numbers)[:RECIPES].tolist())
    curves = (curve for (number, _, _), curve in table.curves.items() if number in drawn)
    return [point for curve in curves for point in curve.points]


def _swapped(table: CurveTable) -> CurveTable:
    """The table as it would be had searches seen the other half; the loss is that of the first."""
    return replace(table, curves={key: _other(curve) for key, curve in table.curves.items()})


def _other(curve: Curve) -> Curve:
    points = tuple(
        replace(
            point,
            measurement=replace(point.measurement, val_error=point.error_b),
            error_b=point.measurement.val_error,
        )
        for point in curve.points
    )
    return replace(curve, points=points)


def _table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Markdown, in percent: a row a task and kind of search, and their means over tasks."""
    lines = [
        "| task | seen | gap to the other half | gap to test | test error |",
        "|---|---|---|---|---|",
    ]
    for kind in ("race", "random recipes"):
        kinds = {row["task"]: row[kind] for row in rows}
        kinds["mean"] = {
            name: {c: fmean(row[kind][name][c] for row in rows) for c in COLUMNS}
            for name in ("measured", "expected")
        }
        for task, told in kinds.items():
            before, after = told["measured"], told["expected"]
            cells = [f"{100 * before[c]:.2f} → {100 * after[c]:.2f}" for c in COLUMNS]
            lines.append(f"| {task} | {kind} | {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
