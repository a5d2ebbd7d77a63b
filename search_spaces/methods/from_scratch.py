"""The search space of training from random weights."""

from search_spaces.finetuning import suggest_finetuning
from search_spaces.problem import Problem
from search_spaces.recipe import Recipe
from search_spaces.space import Trial


def from_scratch(trial: Trial, problem: Problem) -> Recipe:
    """Draws recipes that train everything from random weights, all layers at one rate.

    The parameters are those of `suggest_finetuning`.
    """
    return Recipe(
        method="from_scratch",
        **suggest_finetuning(trial, problem, trainable_depth=1.0, layer_decay=1.0),
    )
