"""The search space of the linear probe."""

from search_spaces.finetuning import suggest_finetuning
from search_spaces.problem import Problem
from search_spaces.recipe import Recipe
from search_spaces.space import Trial


def linear_probe(trial: Trial, problem: Problem) -> Recipe:
    """Draws recipes that train a new classifier on features of the frozen backbone.

    The parameters are those of `suggest_finetuning`.
    """
    return Recipe(
        method="linear_probe",
        **suggest_finetuning(trial, problem, trainable_depth=0.0, layer_decay=1.0),
    )
