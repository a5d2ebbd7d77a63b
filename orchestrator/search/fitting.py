"""Fitting: what a search space makes of a recipe that was written by hand or is known elsewhere."""

from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass
from math import isclose
from typing import Any

from optuna.samplers import RandomSampler

from orchestrator.search.given import GivenDraws, NotOfferedError
from orchestrator.search.portfolio import KnownRecipe
from search_spaces.draws import Draw, draw, write_instead
from search_spaces.finetuning import SIDE, TARGET
from search_spaces.names import fields_of
from search_spaces.problem import Problem
from search_spaces.ranges import Ranges
from search_spaces.recipe import InvalidRecipeError
from search_spaces.space import Space
from trainables.errors import InputError

_DRAWS = 128
"""Draws of what a recipe leaves open, among which one must have all that it says."""


@dataclass(frozen=True, kw_only=True)
class OfferedSpace:
    """A search space as one sweep has it."""

    space: Space
    ranges: Ranges
    problem: Problem

    def written(self, recipe: Mapping[str, Any], *, key: str) -> dict[str, Any]:
        """Returns a recipe as a user wrote it under `key`, by the names of parameters.

        A value may have the name of a field of the recipe: then it is that of the parameter that
        gives the field. Raises `InputError` for the first value that no recipe of the space has.
        """
        for aim in (TARGET, *fields_of(TARGET)):
            if aim in recipe:
                raise InputError(
                    f"{key}.{aim}={recipe[aim]!r} is not the recipe's to say, because the search "
                    "decides how far a recipe goes; leave it out."
                )
        tried = _Tried(recipe)
        for seed in range(_DRAWS):
            given = GivenDraws(recipe, RandomSampler(seed=seed))
            try:
                drawn = draw(self.space, self.ranges, self.problem, given)
            except InvalidRecipeError as error:
                tried.invalid = error
                continue
            if tried.has_all(drawn, given):
                return {**recipe, **_implied(drawn, given, recipe)}
        raise InputError(tried.refusal(key, self._names()))

    def known(self, recipe: KnownRecipe) -> "Fitted":
        """Returns what this space has of a recipe known elsewhere, by the names of parameters.

        A number that is not on offer gives way to the nearest one that is. Raises
        `NotOfferedError`, which says in a few words what is missing, where the method or another
        choice is not on offer.
        """
        values = {**recipe.values, "method": recipe.method}
        if recipe.side is not None:
            values[SIDE] = recipe.side * self.problem.native_resolution
        given = GivenDraws(values, RandomSampler(seed=0), clip=True)
        try:
            drawn = draw(self.space, self.ranges, self.problem, given)
        except InvalidRecipeError as error:
            raise NotOfferedError(str(error).rstrip(".")) from error
        has = drawn.recipe.flat()
        moved = given.refused.keys() & set(given.taken.values())
        missing = given.refused.keys() - moved
        missing |= {n for n in values if n in has and _is_choice(values[n], unlike=has[n])}
        for name in sorted(missing, key=lambda name: (name != "method", name)):
            raise NotOfferedError(f"{name}={values[name]!r} is not offered")
        return Fitted(
            values={name: drawn.params[name] for name in given.taken},
            moved=tuple(sorted(moved - {SIDE})),
        )

    def _names(self) -> Collection[str]:
        """The space's parameters, the fixed ones included."""
        names: dict[str, None] = {}
        for seed in range(_DRAWS):
            with suppress(InvalidRecipeError):
                drawn = draw(self.space, self.ranges, self.problem, RandomSampler(seed=seed))
                names |= dict.fromkeys(drawn.names)
        return names


@dataclass(frozen=True, kw_only=True)
class Fitted:
    """A recipe known elsewhere, as far as a space has it."""

    values: Mapping[str, Any]
    """Values by the names of the space's parameters."""
    moved: tuple[str, ...]
    """The names of numbers that were not on offer and gave way to the nearest that is."""


class _Tried:
    """Remembers which of the values that a recipe was written with some draw has had."""

    def __init__(self, recipe: Mapping[str, Any]) -> None:
        self._recipe = recipe
        self._had: set[str] = set()
        self._rules: dict[str, str] = {}
        self._fields: Mapping[str, Any] = {}
        self.invalid: InvalidRecipeError | None = None
        """Why the last values that made no recipe made none."""

    def has_all(self, drawn: Draw, given: GivenDraws) -> bool:
        """Takes note of a draw; tells whether it has every value."""
        self._fields = drawn.recipe.flat()
        self._rules |= given.refused
        taken = set(given.taken.values())
        has = {
            name
            for name, value in self._recipe.items()
            if name in taken or (name in self._fields and _equal(self._fields[name], value))
        }
        self._had |= has
        return len(has) == len(self._recipe)

    def refusal(self, key: str, names: Collection[str]) -> str:
        """Says what is wrong with the first value that no draw had; `names` are the space's."""
        if not self._fields:
            return f"{key} makes no recipe: {self.invalid}"
        missing = [name for name in self._recipe if name not in self._had]
        if not missing:
            return f"{key} has values that no recipe has together; leave some of them out."
        name = missing[0]
        shown = f"{key}.{name}={self._recipe[name]!r}"
        if name in self._rules:
            return f"{shown} {self._rules[name]}."
        if name in self._fields:
            mend = "leave it out." if name in names else write_instead(name, names)
            had = self._fields[name]
            return f"{shown} cannot be had: recipes with the other values have {had!r}; {mend}"
        if name in names:
            return f"{shown} is asked for by no recipe with the other values; leave it out."
        mend = write_instead(name, names)
        return f"{shown} names no parameter of the search space; {mend}"


def _implied(drawn: Draw, given: GivenDraws, recipe: Mapping[str, Any]) -> dict[str, Any]:
    """The drawn parameters that give several fields, of which the recipe says some."""
    return {
        name: value
        for name, value in drawn.params.items()
        if name not in given.taken and any(field in recipe for field in fields_of(name))
    }


def _is_choice(value: Any, *, unlike: Any) -> bool:
    """Whether the value is no number, which another could stand in for, and differs."""
    return isinstance(value, str | bool) and not _equal(unlike, value)


def _equal(have: Any, wanted: Any) -> bool:
    """Equal but for rounding, where `true` is not 1."""
    if isinstance(have, bool) or isinstance(wanted, bool):
        return have is wanted
    if isinstance(have, int | float) and isinstance(wanted, int | float):
        return isclose(have, wanted, rel_tol=1e-9)
    return bool(have == wanted)
