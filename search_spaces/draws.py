"""Draws: a search space run once, or often enough to know its parameters and its faults."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

import optuna
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler, RandomSampler

from search_spaces.names import fields_of, with_fields
from search_spaces.problem import Problem
from search_spaces.ranges import InvalidRangeError, RangedTrial, Ranges
from search_spaces.recipe import InvalidRecipeError, Recipe
from search_spaces.space import InvalidSpaceError, Space

_DRY_RUNS = 256
"""Enough to meet, with 99 % probability, a parameter that one draw in fifty-five asks for."""


@dataclass(frozen=True, kw_only=True)
class Draw:
    """One recipe and how the sampler came to it."""

    recipe: Recipe
    names: tuple[str, ...]
    """Every parameter the space asked for, the fixed ones included, in order."""
    params: Mapping[str, Any]
    """The values the sampler chose; what the ranges fix is not among them."""
    distributions: Mapping[str, BaseDistribution]
    """The distributions that they were chosen from."""


def draw(
    space: Space, ranges: Ranges, problem: Problem, sampler: BaseSampler, *, clip: bool = False
) -> Draw:
    """Runs `space` once on a throw-away Optuna trial whose values come from `sampler`.

    `clip` is `RangedTrial`'s. Raises `InvalidRangeError` (a range does not fit its parameter),
    `InvalidRecipeError` (the values make no recipe) and `InvalidSpaceError` (the space raised
    something else, or returned no recipe).
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)  # a line for every study it makes
    trial = optuna.create_study(sampler=sampler).ask()
    ranged = RangedTrial(trial, ranges, clip=clip)
    try:
        recipe: object = space(ranged, problem)
    except (InvalidRangeError, InvalidRecipeError):
        raise
    except Exception as error:  # whatever a user's function does
        raise InvalidSpaceError(
            f"The search space {_name(space)} raised {type(error).__name__}: {error}, "
            f"{_at(trial.params)}; mend the function."
        ) from error
    if not isinstance(recipe, Recipe):
        raise InvalidSpaceError(
            f"The search space {_name(space)} returned {recipe!r}; it must return a Recipe."
        )
    return Draw(
        recipe=recipe,
        names=ranged.names,
        params=trial.params,
        distributions=trial.distributions,
    )


@dataclass(frozen=True, kw_only=True)
class Survey:
    """The parameters and recipes that a dry run of a space met."""

    names: tuple[str, ...]
    """The space's parameters, the fixed ones included."""
    recipes: tuple[Recipe, ...]
    """The recipes that were drawn."""

    @property
    def methods(self) -> tuple[str, ...]:
        """The methods that were drawn, each once."""
        return tuple(dict.fromkeys(recipe.method for recipe in self.recipes))


def check_space(space: Space, ranges: Ranges, problem: Problem) -> Survey:
    """The space's parameters and methods, after a dry run that found nothing wrong.

    Random draws (their seeds fixed) look for ranges that do not fit, names that the space never
    asks for, fixed values that the space makes something else of, and a space that raises or
    returns no recipe. A parameter or a fault that almost no draw meets stays unseen.

    Raises what `draw` raises.
    """
    names: dict[str, None] = {}
    recipes: list[Recipe] = []
    for seed in range(_DRY_RUNS):
        drawn = draw(space, ranges, problem, RandomSampler(seed=seed))
        names.update(dict.fromkeys(drawn.names))
        recipes.append(drawn.recipe)
        _check_fixed(drawn, ranges)
    for name in ranges:
        if name not in names:
            raise InvalidRangeError(_unknown(str(name), tuple(names)))
    return Survey(names=tuple(names), recipes=tuple(recipes))


def _check_fixed(drawn: Draw, ranges: Ranges) -> None:
    """A value fixed by name must reach the recipe's field of that name unchanged."""
    fields = drawn.recipe.flat()
    for name in drawn.names:
        wanted = ranges.get(name)
        if name not in fields or not isinstance(wanted, bool | int | float):
            continue
        if fields[name] != wanted:
            raise InvalidRangeError(
                f"space.ranges.{name}={wanted!r} cannot be had: the search space makes "
                f"{fields[name]!r} of it; write {fields[name]!r} or another value it keeps."
            )


def _unknown(name: str, known: tuple[str, ...]) -> str:
    shown = ", ".join(with_fields(parameter) for parameter in known) or "none"
    return (
        f"space.ranges.{name} names no parameter left in the search space, which has {shown}; "
        f"{write_instead(name, known)}"
    )


def write_instead(name: str, known: Collection[str]) -> str:
    """Says what to write in place of a name that is not among the known parameters."""
    if sources := [parameter for parameter in known if name in fields_of(parameter)]:
        return f"the recipe's {name} comes from {' or '.join(sources)} here; write that."
    close = get_close_matches(name, known, n=1)
    return f"did you mean {close[0]}?" if close else "leave it out."


def _name(space: Space) -> str:
    return getattr(space, "__qualname__", repr(space))


def _at(params: Mapping[str, Any]) -> str:
    """Says which values a space had been given when it raised."""
    values = ", ".join(f"{name}={value!r}" for name, value in params.items())
    return f"at {values}" if values else "before it asked for a searched parameter"
