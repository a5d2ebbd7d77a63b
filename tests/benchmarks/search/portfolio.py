"""Makes the portfolio that the product ships, from the recorded tables.

    python -m tests.benchmarks.search.portfolio
    python -m tests.benchmarks.search.portfolio --without gtsrb --out other.json

A replay of a task must leave the task out, and whatever else is like it.
"""

import argparse
from collections.abc import Collection
from pathlib import Path

from orchestrator.search import portfolio
from orchestrator.search.earlier import values_of
from orchestrator.search.portfolio import EarlierSweep, KnownRecipe
from tests.benchmarks.search.tables import CurveTable, Entry, load_table, recorded_tasks
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
