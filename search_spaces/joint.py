"""The search space in which methods compete: which method, and that method's own space."""

from search_spaces.problem import Problem
from search_spaces.ranges import InvalidRangeError
from search_spaces.recipe import Recipe
from search_spaces.space import Trial, load_space, method_spaces, missing_condition


def joint(trial: Trial, problem: Problem) -> Recipe:
    """Chooses a method and draws the rest from the space of its name.

    `method` is any method that has a space here and whose conditions the problem meets;
    `space.ranges.method` lists those that are to compete. Parameters of one name are one parameter,
    so that what the sampler learns of a learning rate it learns of all methods: a name must have
    the same range in every space.
    """
    missing = {name: missing_condition(name, problem) for name in method_spaces()}
    possible = [name for name, condition in missing.items() if condition is None]
    try:
        method = trial.suggest_categorical("method", possible)
    except InvalidRangeError as error:
        reasons = [f"{name} needs {why}" for name, why in missing.items() if why is not None]
        raise InvalidRangeError("; ".join([str(error).rstrip("."), *reasons]) + ".") from None
    return load_space(method)(trial, problem)
