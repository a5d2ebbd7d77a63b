"""The search space of TAPS: which layers must differ is learnt."""

from search_spaces.finetuning import suggest_finetuning
from search_spaces.problem import Problem
from search_spaces.recipe import Recipe
from search_spaces.space import Trial


def taps(trial: Trial, problem: Problem) -> Recipe:
    """Draws recipes that move norms, head and the layers that earn their place in a budget.

    After arXiv 2203.16708.

    =================  ============================  ==========================================
    parameter          range                         source
    =================  ============================  ==========================================
    update_budget      0.05 - 0.8, log               share of the backbone's parameters that may
                                                     differ at the end (ours)
    taps_penalty       0.01 - 1, log                 λ on the mean score: the paper's 0.1-1
                                                     and less: the budget closes layers too
    =================  ============================  ==========================================

    The other parameters are those of `suggest_finetuning`.
    """
    settings = {
        "budget": trial.suggest_float("update_budget", 0.05, 0.8, log=True),
        "penalty": trial.suggest_float("taps_penalty", 0.01, 1.0, log=True),
    }
    return Recipe(
        method="taps",
        settings=settings,
        **suggest_finetuning(trial, problem, trainable_depth=1.0),
    )
