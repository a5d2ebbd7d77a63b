"""The search space of training the last stages."""

from search_spaces.finetuning import suggest_finetuning
from search_spaces.problem import Problem
from search_spaces.recipe import Recipe
from search_spaces.space import Trial


def last_stages(trial: Trial, problem: Problem) -> Recipe:
    """Draws recipes that train the head and the layers nearest to it.

    =================  ============================  ==========================================
    parameter          range                         source
    =================  ============================  ==========================================
    last_stages_depth  0.1, 0.2, ... 0.9             share of the layer groups trained (ours)
    =================  ============================  ==========================================

    The other parameters are those of `suggest_finetuning`.
    """
    depth = trial.suggest_float("last_stages_depth", 0.1, 0.9, step=0.1)
    return Recipe(method="last_stages", **suggest_finetuning(trial, problem, trainable_depth=depth))
