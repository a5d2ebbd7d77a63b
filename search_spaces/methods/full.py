"""The search space of dense full finetuning."""

from search_spaces.finetuning import suggest_finetuning
from search_spaces.problem import Problem
from search_spaces.recipe import Recipe
from search_spaces.space import Trial


def full(trial: Trial, problem: Problem) -> Recipe:
    """Draws recipes that train everything.

    The parameters are those of `suggest_finetuning`.
    """
    return Recipe(method="full", **suggest_finetuning(trial, problem, trainable_depth=1.0))
