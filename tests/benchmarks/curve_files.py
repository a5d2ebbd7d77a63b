"""Files of recorded curves: JSON lines while they are recorded, Parquet tables once packed.

A curve is one trial: a recipe run towards one rung with one seed. As a line of
`runs/recorded/TASK.jsonl` it is an object with the fields of `Recorded`. In
`tests/benchmarks/curves/TASK.parquet` each of its points is a row that repeats what they share; a
trial that was infeasible or diverged ends with a row that has no measurement.
"""

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from search_spaces.ranges import Ranges
from tests.checkout import ROOT

TABLES = Path(__file__).with_name("curves")
"""The packed tables, and the facts of each task in `tasks.json`."""
FOLDER = "RECORDED_CURVES"
"""Environment variable: the folder of the curves that are not packed, if it is another."""
RANGES: Ranges = {
    "method": [
        *("filter_pruning", "full", "last_stages", "linear_probe"),
        *("lora", "magnitude", "norm_and_head"),
    ]
}
"""The methods of recorded recipes, which come from the joint space."""
_TEXT = pa.dictionary(pa.int32(), pa.string())
_SHARED = {
    "number": pa.int32(),
    "origin": _TEXT,
    "seed": pa.int8(),
    "target_flops": pa.float64(),
    "recipe": _TEXT,
    "params": _TEXT,
    "distributions": _TEXT,
}
"""Columns that are the same in all rows of a curve; the last three are JSON."""
_POINT = {
    "outcome": _TEXT,
    "reason": _TEXT,
    "spent": pa.float64(),
    "rung": pa.int8(),
    "train_flops": pa.float64(),
    "trunk_flops": pa.float64(),
    "eval_flops": pa.float64(),
    "inference_flops": pa.float64(),
    "sparse_train_flops": pa.float64(),
    "sparse_inference_flops": pa.float64(),
    "params_count": pa.int64(),
    "updated_params": pa.int64(),
    "nonzero_params": pa.int64(),
    "images_seen": pa.int64(),
    "train_seconds": pa.float64(),
    "val_error": pa.float64(),
    "val_error_b": pa.float64(),
    "val_loss": pa.float64(),
    "test_error": pa.float64(),
}
"""Columns of one point; null where it has no such value."""
_SCHEMA = pa.schema([*_SHARED.items(), *_POINT.items()])


@dataclass(frozen=True, kw_only=True)
class Recorded:
    """A curve as its file has it."""

    number: int
    """Number of the recipe, the same towards every rung."""
    origin: str
    """How the recipe was found: `random` for a random draw whose seed is the number."""
    seed: int
    recipe: Mapping[str, Any]
    """`Recipe.to_dict`, with the compute aimed at."""
    params: Mapping[str, Any]
    """The values that gave the recipe in its space, but for the rung aimed at."""
    distributions: Mapping[str, str]
    """The distributions that they were drawn from, as JSON."""
    points: tuple[Mapping[str, Any], ...]
    """Each a trial's outcome so far and what was measured: `val_error` on half A, `val_error_b` on
    half B. The last one of a trial that is infeasible or diverged has no measurement, but the
    training FLOPs `spent` since the one before."""

    @property
    def key(self) -> tuple[int, float, int]:
        """Number, target and seed, which no other curve of the task shares."""
        return self.number, self.recipe["target_flops"], self.seed


def recorded_curves(task: str) -> list[Recorded]:
    """Every curve of the task, packed or fresh, each once."""
    found = {curve.key: curve for curve in (*_packed(task), *_fresh(task))}
    return [found[key] for key in sorted(found)]


def append(task: str, curve: Recorded) -> None:
    """Adds a curve to those that are not packed."""
    path = _fresh_path(task)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(asdict(curve)) + "\n")


def pack(task: str) -> Path:
    """Writes all curves of the task into its table; the fresh ones stay where they are too."""
    rows = [row for curve in recorded_curves(task) for row in _rows(curve)]
    path = TABLES / f"{task}.parquet"
    table = pa.Table.from_pylist(rows, schema=_SCHEMA)
    pq.write_table(table, path, compression="zstd", compression_level=19)
    return path


def _fresh_path(task: str) -> Path:
    return Path(os.environ.get(FOLDER, ROOT / "runs" / "recorded")) / f"{task}.jsonl"


def _fresh(task: str) -> Iterator[Recorded]:
    path = _fresh_path(task)
    if path.exists():
        whole = path.read_text(encoding="utf-8").split("\n")[:-1]  # a kill tears the last one
        for values in map(json.loads, whole):
            yield Recorded(**values | {"points": tuple(values["points"])})


def _packed(task: str) -> Iterator[Recorded]:
    path = TABLES / f"{task}.parquet"
    if not path.exists():
        return
    rows: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for row in pq.read_table(path).to_pylist():
        rows.setdefault((row["number"], row["target_flops"], row["seed"]), []).append(row)
    for curve in rows.values():
        yield _curve_of(curve)


def _rows(curve: Recorded) -> Iterator[dict[str, Any]]:
    recipe = {name: v for name, v in curve.recipe.items() if name != "target_flops"}
    shared = {
        "number": curve.number,
        "origin": curve.origin,
        "seed": curve.seed,
        "target_flops": curve.recipe["target_flops"],
        "recipe": json.dumps(recipe),
        "params": json.dumps(curve.params),
        "distributions": json.dumps(curve.distributions),
    }
    for point in curve.points:
        values = {**point, "params_count": point.get("params")}
        yield {**shared, **{name: values.get(name) for name in _POINT}}


def _curve_of(rows: list[dict[str, Any]]) -> Recorded:
    first = rows[0]
    recipe = json.loads(first["recipe"]) | {"target_flops": first["target_flops"]}
    return Recorded(
        number=first["number"],
        origin=first["origin"],
        seed=first["seed"],
        recipe=recipe,
        params=json.loads(first["params"]),
        distributions=json.loads(first["distributions"]),
        points=tuple(_points_of(rows)),
    )


def _points_of(rows: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    spent = 0.0
    for row in rows:
        point = {name: row[name] for name in _POINT if row[name] is not None}
        if "rung" in point:
            point["params"] = point.pop("params_count")
            point["executed_flops"] = point["train_flops"] - spent
            spent = point["train_flops"]
        yield point
