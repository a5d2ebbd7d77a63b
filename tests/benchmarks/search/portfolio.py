"""Makes the portfolio that the product ships, from the recorded tables.

    python -m tests.benchmarks.search.portfolio
    python -m tests.benchmarks.search.portfolio --without gtsrb --out other.json

A replay of a task must leave the task out, and whatever else is like it.
"""

import argparse
import functools
from collections.abc import Collection, Iterable, Iterator
from contextlib import suppress
from itertools import islice
from pathlib import Path

import numpy as np

from orchestrator.search import portfolio
from orchestrator.search.earlier import values_of
from orchestrator.search.fitting import Fitted, OfferedSpace
from orchestrator.search.given import NotOfferedError
from orchestrator.search.portfolio import EarlierSweep, KnownRecipe
from orchestrator.search.start import StartRecipe
from tests.benchmarks.search.tables import (
    CurveTable,
    Entry,
    load_table,
    recorded_tasks,
    taskset_tasks,
)
from trainables.measurement import Outcome


def main() -> None:
    """Writes the file that the command line names."""
    parser = argparse.ArgumentParser(description="Makes the portfolio of the built-in spaces.")
    parser.add_argument("--without", nargs="*", default=[], help="tasks to leave out")
    parser.add_argument("--out", type=Path, default=portfolio.SHIPPED)
    arguments = parser.parse_args()
    recipes = portfolio_without(arguments.without)
    portfolio.write(arguments.out, recipes)
    print(f"{arguments.out}: {len(recipes)} recipes")


def portfolio_without(tasks: Collection[str]) -> list[KnownRecipe]:
    """Returns the portfolio of all recorded tasks but those."""
    known = [task for task in recorded_tasks() if task not in tasks]
    return portfolio.portfolio_of([sweep_of(load_table(task)) for task in known])


def sweep_of(table: CurveTable) -> EarlierSweep:
    """Returns a table as a sweep that ran every recipe towards every rung."""
    recipes = [_known_recipe(table, entry) for entry in table.entries]
    return EarlierSweep(name=table.task, recipes=recipes)


def portfolio_for(table: CurveTable) -> list[KnownRecipe]:
    """Returns the portfolio that a search of the table may know: of the other tasks of its kind."""
    kind = recorded_tasks() if table.task in recorded_tasks() else taskset_tasks()
    others = [_sweep_of_task(task) for task in kind if task != table.task]
    return portfolio.portfolio_of(others) if others else []


def worst_of(table: CurveTable) -> list[KnownRecipe]:
    """Returns a portfolio that leads astray: the worst of what can be measured on the table."""
    sweep = sweep_of(table)
    worth = sweep.gains.sum(axis=1)
    worst = [row for row in np.argsort(worth) if worth[row] > 0]
    return [sweep.recipes[row] for row in worst[: portfolio.SIZE]]


def start_of(table: CurveTable, known: Iterable[KnownRecipe]) -> list[StartRecipe]:
    """Returns what the table's space offers of known recipes, as many as a sweep tries."""
    fitted = islice(_offered(table, known), portfolio.SIZE)
    return [StartRecipe(values=recipe.values, origin=table.task) for recipe in fitted]


def _offered(table: CurveTable, known: Iterable[KnownRecipe]) -> Iterator[Fitted]:
    """The recipes that the table's space has."""
    offered = OfferedSpace(space=table.space, ranges=table.ranges, problem=table.problem)
    for recipe in known:
        with suppress(NotOfferedError):
            yield offered.known(recipe)


@functools.cache
def _sweep_of_task(task: str) -> EarlierSweep:
    return sweep_of(load_table(task))


def _known_recipe(table: CurveTable, entry: Entry) -> KnownRecipe:
    values, side = values_of(entry.recipe, entry.params, entry.distributions)
    rungs = range(len(table.levels))
    return KnownRecipe(
        sweep=table.task,
        trial=str(entry.number),
        method=entry.recipe.method,
        values=values,
        side=side,
        errors=tuple(_error(table, entry.number, rung) for rung in rungs),
    )


def _error(table: CurveTable, number: int, rung: int) -> float | None:
    """The validation error of a recipe that aimed at the rung; None where it did not get there."""
    curve = table.curve(number, rung, seed=0)
    if curve.outcome is not Outcome.COMPLETE:
        return None
    return curve.points[-1].measurement.val_error


if __name__ == "__main__":
    main()
