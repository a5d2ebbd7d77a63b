"""The search space of SWR: a policy decides which weights are updated."""

from search_spaces.finetuning import suggest_finetuning
from search_spaces.problem import Problem
from search_spaces.recipe import Recipe
from search_spaces.space import Trial


def swr(trial: Trial, problem: Problem) -> Recipe:
    """Draws recipes that move norms, head and, within a budget, what a policy network picks.

    After arXiv 2302.13435.

    =================  ============================  ==========================================
    parameter          range                         source
    =================  ============================  ==========================================
    update_budget      0.05 - 0.8, log               share of the backbone's parameters that may
                                                     differ at the end (the constraint is the
                                                     paper's, the range ours)
    swr_granularity    filter, layer                 what is decided about at once (ours)
    swr_penalty        0.01 - 10, log                weight of what exceeds the budget (ours)
    =================  ============================  ==========================================

    The other parameters are those of `suggest_finetuning`.
    """
    settings = {
        "budget": trial.suggest_float("update_budget", 0.05, 0.8, log=True),
        "granularity": trial.suggest_categorical("swr_granularity", ("filter", "layer")),
        "penalty": trial.suggest_float("swr_penalty", 0.01, 10.0, log=True),
    }
    return Recipe(
        method="swr",
        settings=settings,
        **suggest_finetuning(trial, problem, trainable_depth=1.0),
    )
