"""The search space of training norms and head."""

from search_spaces.finetuning import suggest_finetuning
from search_spaces.problem import Problem
from search_spaces.recipe import Recipe
from search_spaces.space import Trial


def norm_and_head(trial: Trial, problem: Problem) -> Recipe:
    """Draws recipes that train the norms, at every depth, and a new classifier.

    The parameters are those of `suggest_finetuning`.
    """
    return Recipe(method="norm_and_head", **suggest_finetuning(trial, problem, trainable_depth=1.0))
