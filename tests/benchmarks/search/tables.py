"""Tables of recorded curves, from which a replay answers what a trial would have measured."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from math import isfinite, log
from typing import Any

import pyarrow.parquet as pq
from optuna.distributions import BaseDistribution, IntDistribution, json_to_distribution
from optuna.samplers import RandomSampler

from search_spaces.draws import draw
from search_spaces.joint import joint
from search_spaces.problem import Problem
from search_spaces.ranges import Ranges
from search_spaces.recipe import Optimizer, Recipe, Schedule
from search_spaces.space import Space, Trial
from tests.benchmarks.curve_files import RANGES, TABLES, Recorded, recorded_curves
from tests.checkout import SHARED
from trainables.measurement import Measurement, Outcome

DECAY_BEGINS = 0.8
"""Share of a warm-up-stable-decay schedule that runs towards more compute share."""

_LOSS_OF_A_GUESS = log(2)
"""TaskSet's tasks have two balanced classes."""
_UNIT_FLOPS = 1e9
"""The FLOPs that a checkpoint of TaskSet counts as."""
_UNITS = (1, 2, 3, 5, 9, 17, 29, 51)
"""Checkpoints at which TaskSet's curves are read, a rung each."""
_TASKSET = SHARED / "curves" / "taskset.parquet"


@dataclass(frozen=True, kw_only=True)
class Point:
    """A measurement of a recipe run alone, with what the search never sees."""

    measurement: Measurement
    """With the error on half A as `val_error`."""
    error_b: float
    """Error on half B, 0-1."""
    test_error: float


@dataclass(frozen=True, kw_only=True)
class Curve:
    """The measurements of one recipe on its way to one target with one seed."""

    points: tuple[Point, ...]
    outcome: Outcome
    """How the trial ends after the last point."""
    reason: str | None = None
    unmeasured_flops: float = 0.0
    """Training FLOPs executed after the last point by a trial that is infeasible or diverges."""


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A recipe of a table, as the space gives it to an Optuna trial."""

    number: int
    recipe: Recipe
    """It aims at the top rung."""
    params: Mapping[str, Any]
    distributions: Mapping[str, BaseDistribution]


@dataclass(frozen=True, kw_only=True)
class CurveTable:
    """Every curve of a task's recipes towards every rung."""

    task: str
    space: Space
    ranges: Ranges
    problem: Problem
    entries: tuple[Entry, ...]
    curves: Mapping[tuple[int, int, int], Curve]
    """By entry's number, target rung and seed."""
    chance_error: float
    """The error, 0-1, of guessing."""
    images: int | None = None
    """Images of half A; None where errors are no shares of images."""
    most_common: int | None = None
    """Images of its most common class."""

    @property
    def levels(self) -> tuple[float, ...]:
        """Training FLOPs of every rung, ascending."""
        return self.problem.rungs

    def entry(self, recipe: Recipe) -> Entry:
        """The entry that the recipe is, whatever it aims at."""
        return self._by_id[_aimless_id(recipe)]

    def rung(self, recipe: Recipe) -> int:
        """The rung that the recipe aims at."""
        return _rung(self.levels, recipe.target_flops)

    def curve(self, number: int, rung: int, seed: int) -> Curve:
        """The curve of a recipe towards a rung; `seed` picks one of the recorded seeds."""
        seeds = self._recorded_seeds[number]
        return self.curves[number, rung, seeds[seed % len(seeds)]]

    def needs_flops(self, number: int) -> float | None:
        """The lowest level at which the recipe can be realised; None where there is none."""
        for rung, level in enumerate(self.levels):
            if self.curve(number, rung, 0).outcome is not Outcome.INFEASIBLE:
                return level
        return None

    @cached_property
    def _by_id(self) -> Mapping[str, Entry]:
        return {_aimless_id(entry.recipe): entry for entry in self.entries}

    @cached_property
    def _recorded_seeds(self) -> Mapping[int, list[int]]:
        seeds: dict[int, list[int]] = {}
        for number, rung, seed in sorted(self.curves):
            if rung == 0:
                seeds.setdefault(number, []).append(seed)
        return seeds


def recorded_tasks() -> tuple[str, ...]:
    """The tasks whose curves this product recorded itself."""
    return tuple(json.loads((TABLES / "tasks.json").read_text(encoding="utf-8")))


def taskset_tasks() -> tuple[str, ...]:
    """The tasks of TaskSet, or none where the file does not lie beside the checkout."""
    if not _TASKSET.exists():
        return ()
    return tuple(sorted(set(pq.read_table(_TASKSET, columns=["task"])["task"].to_pylist())))


def load_table(task: str) -> CurveTable:
    """The table of a recorded task or of one of TaskSet's."""
    return recorded(task) if task in recorded_tasks() else taskset(task)


def recorded(task: str) -> CurveTable:
    """The table of a task whose curves were recorded with this product.

    A recipe counts once all its targets are recorded with a seed.
    """
    facts = json.loads((TABLES / "tasks.json").read_text(encoding="utf-8"))[task]
    problem = Problem(**facts["problem"])
    images, most_common = facts["images"], facts["most_common"]
    found: dict[tuple[int, int], dict[int, Curve]] = {}
    entries: dict[int, Entry] = {}
    for line in recorded_curves(task):
        recipe = Recipe.from_dict(line.recipe)
        rung = _rung(problem.rungs, recipe.target_flops)
        found.setdefault((line.number, line.seed), {})[rung] = _curve(recipe, line.points)
        if line.number not in entries:
            entries[line.number] = _entry(line, recipe, problem)
    whole = {key: curves for key, curves in found.items() if len(curves) == len(problem.rungs)}
    return CurveTable(
        task=task,
        space=joint,
        ranges=RANGES,
        problem=problem,
        entries=tuple(entries[number] for number, seed in sorted(whole) if seed == 0),
        curves={
            (number, rung, seed): curve
            for (number, seed), curves in whole.items()
            for rung, curve in curves.items()
        },
        chance_error=1 - most_common / images,
        images=images,
        most_common=most_common,
    )


def taskset(task: str) -> CurveTable:
    """The table of one of TaskSet's tasks, whose curves are of a constant schedule.

    A checkpoint counts as 1e9 FLOPs and evaluation as none. The error is
    clip((loss - best) / (ln 2 - best), 0, 1), which guessing makes 1 and the table's lowest loss 0:
    half A is the valid loss, half B the test loss. A loss that is not finite ends a curve as
    diverged.
    """
    rows = pq.read_table(_TASKSET, filters=[("task", "=", task)]).to_pylist()
    levels = tuple(_UNIT_FLOPS * units for units in _UNITS)
    problem = Problem(rungs=levels, native_resolution=8, train_images=25_000, classes=2)
    distributions = draw(taskset_space, {}, problem, RandomSampler(seed=0)).distributions
    best = {
        split: min(loss for row in rows for loss in row[split] if isfinite(loss))
        for split in ("valid_loss", "test_loss")
    }
    entries, curves = [], {}
    for row in rows:
        number, params = row["config"], _taskset_params(row)
        entries.append(
            Entry(
                number=number,
                recipe=_taskset_recipe(params, levels[-1]),
                params=params | {"target_rung": len(levels) - 1},
                distributions=distributions,
            )
        )
        for rung, curve in enumerate(_taskset_curves(row, best)):
            curves[number, rung, 0] = curve
    return CurveTable(
        task=task,
        space=taskset_space,
        ranges={},
        problem=problem,
        entries=tuple(entries),
        curves=curves,
        chance_error=1.0,
    )


def taskset_space(trial: Trial, problem: Problem) -> Recipe:
    """TaskSet's eight optimiser settings, within the ranges that its configurations lie in."""
    params = {
        "learning_rate": trial.suggest_float("learning_rate", 1e-8, 10.0, log=True),
        "one_minus_beta1": trial.suggest_float("one_minus_beta1", 1e-4, 1.0, log=True),
        "one_minus_beta2": trial.suggest_float("one_minus_beta2", 1e-6, 1.0, log=True),
        "epsilon": trial.suggest_float("epsilon", 1e-10, 1e3, log=True),
        "l1": trial.suggest_float("l1", 1e-8, 10.0, log=True),
        "l2": trial.suggest_float("l2", 1e-8, 10.0, log=True),
        "linear_decay": trial.suggest_float("linear_decay", 1e-7, 1e-4, log=True),
        "exponential_decay": trial.suggest_float("exponential_decay", 1e-6, 1e-3, log=True),
    }
    target = trial.suggest_int("target_rung", 0, len(problem.rungs) - 1)
    return _taskset_recipe(params, problem.rungs[target])


def trunk_share(recipe: Recipe) -> float:
    """The share of the recipe's compute that a run of it towards more compute has in common.

    This is the rule for curves that were recorded before trials told it themselves. Where the head
    alone is trained, it counts as none: the passes over the stored features may depend on the aim.
    """
    if recipe.trainable_depth == 0:
        return 0.0
    if recipe.settings.get("sparsification") == "gradual":
        return 0.0
    shares = {Schedule.CONSTANT: 1.0, Schedule.WARMUP_STABLE_DECAY: DECAY_BEGINS}
    return shares.get(recipe.schedule, 0.0)


def _aimless_id(recipe: Recipe) -> str:
    return replace(recipe, target_flops=1.0).recipe_id


def _rung(levels: Sequence[float], flops: float) -> int:
    """The highest rung whose level the FLOPs reach."""
    return max(rung for rung, level in enumerate(levels) if level <= flops * (1 + 1e-9))


def _entry(line: Recorded, recipe: Recipe, problem: Problem) -> Entry:
    top = len(problem.rungs) - 1
    distributions = {name: json_to_distribution(text) for name, text in line.distributions.items()}
    return Entry(
        number=line.number,
        recipe=replace(recipe, target_flops=problem.rungs[top]),
        params={**line.params, "target_rung": top},
        distributions={**distributions, "target_rung": IntDistribution(0, top)},
    )


def _curve(recipe: Recipe, lines: Sequence[Mapping[str, Any]]) -> Curve:
    points = [_point(line) for line in lines if "rung" in line]
    end = lines[-1]
    outcome = Outcome(end["outcome"])
    if outcome is Outcome.COMPLETE and "trunk_flops" not in end:
        points[-1] = _with_trunk(points[-1], trunk_share(recipe))
    return Curve(
        points=tuple(points),
        outcome=outcome,
        reason=end.get("reason"),
        unmeasured_flops=end.get("spent", 0.0),
    )


def _point(line: Mapping[str, Any]) -> Point:
    measurement = replace(Measurement.from_dict(line), test_error=None)
    return Point(
        measurement=measurement, error_b=line["val_error_b"], test_error=line["test_error"]
    )


def _with_trunk(point: Point, share: float) -> Point:
    trunk_flops = share * point.measurement.train_flops
    return replace(point, measurement=replace(point.measurement, trunk_flops=trunk_flops))


def _taskset_params(row: Mapping[str, Any]) -> dict[str, Any]:
    same = ("learning_rate", "epsilon", "l1", "l2", "linear_decay", "exponential_decay")
    betas = {f"one_minus_{name}": 1 - row[name] for name in ("beta1", "beta2")}
    return {name: row[name] for name in same} | betas


def _taskset_recipe(params: Mapping[str, Any], target_flops: float) -> Recipe:
    settings = dict(params)
    return Recipe(
        method="taskset",
        learning_rate=settings.pop("learning_rate"),
        settings=settings,
        weight_decay=0.0,
        batch_size=64,
        label_smoothing=0.0,
        layer_decay=1.0,
        trainable_depth=1.0,
        resolution=8,
        augmentation=0.0,
        optimizer=Optimizer.ADAMW,
        schedule=Schedule.CONSTANT,
        target_flops=target_flops,
    )


def _taskset_curves(row: Mapping[str, Any], best: Mapping[str, float]) -> Iterator[Curve]:
    """The curves towards every rung, which agree as far as they go."""
    losses = list(zip(row["valid_loss"], row["test_loss"], strict=True))
    sound = next((at for at, pair in enumerate(losses) if not all(map(isfinite, pair))), None)
    points: list[Point] = []
    for rung, units in enumerate(_UNITS):
        if sound is not None and units > sound:
            reached = _UNITS[rung - 1] if rung else 0
            spent = (min(sound + 1, units) - reached) * _UNIT_FLOPS
            diverged = Curve(points=tuple(points), outcome=Outcome.DIVERGED, unmeasured_flops=spent)
            yield from [diverged] * (len(_UNITS) - rung)
            return
        valid, test = losses[units - 1]
        error_b = _share(test, best["test_loss"])
        measurement = _taskset_measurement(rung, units, valid, best["valid_loss"])
        points.append(Point(measurement=measurement, error_b=error_b, test_error=error_b))
        end = _with_trunk(points[-1], 1.0)
        yield Curve(points=(*points[:-1], end), outcome=Outcome.COMPLETE)


def _share(loss: float, best: float) -> float:
    return min(1.0, max(0.0, (loss - best) / (_LOSS_OF_A_GUESS - best)))


def _taskset_measurement(rung: int, units: int, loss: float, best: float) -> Measurement:
    return Measurement(
        rung=rung,
        train_flops=units * _UNIT_FLOPS,
        executed_flops=units * _UNIT_FLOPS,
        eval_flops=0.0,
        inference_flops=1.0,
        params=1,
        updated_params=1,
        val_error=_share(loss, best),
        val_loss=loss,
        train_seconds=float(units),
        images_seen=units,
    )
