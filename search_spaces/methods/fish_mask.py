"""The search space of FISH masks."""

from search_spaces.finetuning import suggest_finetuning
from search_spaces.problem import Problem
from search_spaces.recipe import Recipe
from search_spaces.space import Trial


def fish_mask(trial: Trial, problem: Problem) -> Recipe:
    """Draws recipes that train the values with the largest empirical Fisher and a new classifier.

    =================  ================  =======================================================
    parameter          range             source
    =================  ================  =======================================================
    fish_mask_share    2e-4 - 0.2, log   of the backbone's values; 0.0002-0.021 in arXiv
                                         2111.09839, more is ours
    fish_mask_samples  32 - 1024, log    images whose gradients choose them; the paper's 1024,
                                         fewer (ours) for small budgets
    =================  ================  =======================================================

    The other parameters are those of `suggest_finetuning`.
    """
    settings = {
        "share": trial.suggest_float("fish_mask_share", 2e-4, 0.2, log=True),
        "samples": trial.suggest_int("fish_mask_samples", 32, 1024, log=True),
    }
    finetuning = suggest_finetuning(trial, problem, trainable_depth=1.0)
    return Recipe(method="fish_mask", settings=settings, **finetuning)
