"""Earlier sweeps: the recipes that their ledgers hold, without what they aimed at."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from optuna.distributions import BaseDistribution, IntDistribution, json_to_distribution

from orchestrator.search.portfolio import EarlierSweep, KnownRecipe
from orchestrator.store.folder import stored
from orchestrator.store.journal import Journal
from orchestrator.store.ledger import Ledger, TrialRecord
from search_spaces.finetuning import SIDE, TARGET
from search_spaces.names import fields_of
from search_spaces.recipe import Recipe
from trainables.errors import InputError
from trainables.measurement import Measurement


def earlier_sweep(run: str) -> EarlierSweep:
    """Returns the sweep in a folder, of a name under `./runs`, or at a storage URI.

    Raises `InputError` where there is none, or nothing was measured.
    """
    ledger = Ledger(Journal(stored(run), "journal"))
    name = run.rstrip("/").rpartition("/")[-1]
    recipes = _known_recipes(ledger.trials(), sweep=name)
    if not recipes:
        raise InputError(f"The sweep {run!r} has measured nothing; leave it out.")
    return EarlierSweep(name=name, recipes=recipes)


def values_of(
    recipe: Recipe, params: Mapping[str, Any], distributions: Mapping[str, BaseDistribution]
) -> tuple[dict[str, Any], float | None]:
    """Returns what `KnownRecipe` has as `values` and as `side`."""
    told = {field for name in params for field in (name, *fields_of(name))}
    values: dict[str, Any] = {
        name: value for name, value in recipe.flat().items() if name not in told
    }
    values |= params
    for aim in (TARGET, *fields_of(TARGET)):
        values.pop(aim, None)
    sides = distributions.get(SIDE)
    if not isinstance(sides, IntDistribution):
        return values, None
    return values, values.pop(SIDE) / sides.high


def _known_recipes(trials: Iterable[TrialRecord], *, sweep: str) -> list[KnownRecipe]:
    """The recipes that were measured, whatever they aimed at, each once."""
    alike: dict[str, list[TrialRecord]] = {}
    for trial in trials:
        if trial.measurements:
            aimless = replace(trial.recipe, target_flops=1.0)
            alike.setdefault(aimless.recipe_id, []).append(trial)
    rungs = 1 + max((m.rung for same in alike.values() for m in _points(same)), default=0)
    return [_known_recipe(same, sweep=sweep, rungs=rungs) for same in alike.values()]


def _known_recipe(trials: Sequence[TrialRecord], *, sweep: str, rungs: int) -> KnownRecipe:
    """The recipe that all the trials ran."""
    first = trials[0]
    distributions = {n: json_to_distribution(text) for n, text in first.distributions.items()}
    values, side = values_of(first.recipe, first.params, distributions)
    errors: list[float | None] = [None] * rungs
    for point in _points(trials):
        known = errors[point.rung]
        if known is None or point.val_error < known:
            errors[point.rung] = point.val_error
    return KnownRecipe(
        sweep=sweep,
        trial=first.trial_id,
        method=first.recipe.method,
        values=values,
        side=side,
        errors=tuple(errors),
    )


def _points(trials: Iterable[TrialRecord]) -> Iterator[Measurement]:
    return (measurement for trial in trials for measurement in trial.measurements)
