"""The search space of transferring a backbone that arrives sparse."""

from search_spaces.finetuning import suggest_finetuning
from search_spaces.problem import Problem
from search_spaces.recipe import Recipe
from search_spaces.space import Trial


def keep_sparse(trial: Trial, problem: Problem) -> Recipe:
    """Draws recipes that finetune, from the head alone to everything, and keep the zeros.

    The parameters are those of `suggest_finetuning`.
    """
    return Recipe(method="keep_sparse", **suggest_finetuning(trial, problem))


def missing(problem: Problem) -> str | None:
    """Says that a sparse backbone is missing: a few zeros that are chance are nothing to keep."""
    return None if problem.sparse_backbone else "a backbone that arrives sparse"
