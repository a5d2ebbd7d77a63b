"""The search space of transferring a backbone that arrives sparse."""

from search_spaces.finetuning import suggest_finetuning
from search_spaces.problem import Problem
from search_spaces.recipe import Recipe
from search_spaces.space import Trial


def keep_sparse(trial: Trial, problem: Problem) -> Recipe:
    """Finetune, from the head alone to everything, and keep the backbone's zeros.

    Asks for what `suggest_finetuning` asks for.
    """
    return Recipe(method="keep_sparse", **suggest_finetuning(trial, problem))


def missing(problem: Problem) -> str | None:
    """A backbone that is dense, but for a few zeros that are chance, has nothing to keep."""
    return None if problem.sparse_backbone else "a backbone that arrives sparse"
