"""The interface of a search space, and how one is found by its name."""

import functools
import importlib
import pkgutil
from collections.abc import Callable, Sequence
from inspect import isfunction
from typing import Any, Protocol, cast

import search_spaces
from search_spaces import methods
from search_spaces.problem import Problem
from search_spaces.recipe import Recipe
from trainables.errors import UserError


class Trial(Protocol):
    """The three questions of an `optuna.Trial` that a search space may ask."""

    def suggest_float(
        self, name: str, low: float, high: float, *, step: float | None = None, log: bool = False
    ) -> float:
        """A number in [low, high], on the grid of `step` from `low`, or on a log scale."""

    def suggest_int(
        self, name: str, low: int, high: int, *, step: int = 1, log: bool = False
    ) -> int:
        """A whole number in [low, high], on the grid of `step` from `low`, or on a log scale."""

    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any:
        """One of `choices`, which have no order."""


Space = Callable[[Trial, Problem], Recipe]
"""A search space: asks the trial for values and returns the recipe they make."""


class InvalidSpaceError(UserError):
    """A search space cannot be found, raises, or returns something else than a recipe."""


def load_space(name: str) -> Space:
    """The search space called `name`.

    Either a built-in, which is a file of this room or of its `methods` with a function of the same
    name (`filter_pruning`), or `module:function`, a function of the user's own that Python can
    import. Raises `InvalidSpaceError`.
    """
    if ":" in name:
        return _users_own(name)
    if (space := _namesake(name)) is None:
        raise InvalidSpaceError(
            f"search space {name!r} does not exist; name a built-in "
            f"({', '.join(built_in_spaces())}) or a function of your own as module:function."
        )
    return space


@functools.cache
def built_in_spaces() -> tuple[str, ...]:
    """Names of this room's spaces, in alphabetical order."""
    return tuple(name for name in sorted(_modules()) if _namesake(name) is not None)


def method_spaces() -> tuple[str, ...]:
    """Names of the methods that have a space, in alphabetical order."""
    return tuple(sorted(module.name for module in pkgutil.iter_modules(methods.__path__)))


def missing_condition(name: str, problem: Problem) -> str | None:
    """Says in a few words what the built-in space `name` needs and `problem` lacks, if anything.

    A space's file says so in a function `missing(problem)`; one without needs nothing.
    """
    module = importlib.import_module(_modules()[name])
    missing: Callable[[Problem], str | None] = getattr(module, "missing", lambda _: None)
    return missing(problem)


def _users_own(name: str) -> Space:
    module_name, _, function_name = name.partition(":")
    if not module_name or not function_name:
        raise InvalidSpaceError(
            f"search space {name!r} must read module:function, for example my_spaces:narrow."
        )
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # whatever a user's module does while it is imported
        raise InvalidSpaceError(
            f"search space {name!r} cannot be imported ({type(error).__name__}: {error}); "
            "mend the module, or put its folder on PYTHONPATH."
        ) from error
    space = getattr(module, function_name, None)
    if not callable(space):
        raise InvalidSpaceError(
            f"search space {name!r} must be a function, but {module_name} has no function "
            f"{function_name!r}; define it as {function_name}(trial, problem) -> Recipe."
        )
    return cast(Space, space)


@functools.cache
def _modules() -> dict[str, str]:
    """Module by name of every file of this room and of its `methods`."""
    packages = (search_spaces, methods)
    return {
        module.name: f"{package.__name__}.{module.name}"
        for package in packages
        for module in pkgutil.iter_modules(package.__path__)
    }


def _namesake(name: str) -> Space | None:
    """The function `name` of this room's file `name`, where there is one."""
    if name not in _modules():
        return None
    function = getattr(importlib.import_module(_modules()[name]), name, None)
    return cast(Space, function) if isfunction(function) else None
