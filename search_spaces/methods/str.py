"""The search space of soft threshold reparametrisation (STR)."""

from search_spaces.finetuning import suggest_finetuning
from search_spaces.problem import Problem
from search_spaces.recipe import Recipe
from search_spaces.space import Trial


def str(trial: Trial, problem: Problem) -> Recipe:  # named as its file is; hides Python's own here
    """Draws recipes that train, for each layer, a threshold below which weights are zero.

    =====================  =============  ====================================================
    parameter              range          source
    =====================  =============  ====================================================
    str_initial_threshold  0.1 - 1, log   of each layer, in units of its weights' mean size;
                                          learned from there (arXiv 2002.03231; the units ours)
    str_final_threshold    1 - 4, log     the end of its way up over the steps, apart from what
                                          is learned; in place of weight decay (ours)
    =====================  =============  ====================================================

    The other parameters are those of `suggest_finetuning`.
    """
    return Recipe(
        method="str",
        settings={
            "initial_threshold": trial.suggest_float("str_initial_threshold", 0.1, 1.0, log=True),
            "final_threshold": trial.suggest_float("str_final_threshold", 1.0, 4.0, log=True),
        },
        **suggest_finetuning(trial, problem, trainable_depth=1.0),
    )
