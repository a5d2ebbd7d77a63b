"""The search space of Powerpropagation."""

from search_spaces.finetuning import suggest_finetuning
from search_spaces.problem import Problem
from search_spaces.recipe import Recipe
from search_spaces.space import Trial


def powerpropagation(trial: Trial, problem: Problem) -> Recipe:
    """Draws recipes that train powers in the place of the weights and prune once by magnitude.

    =========================  ==============  ==============================================
    parameter                  range           source
    =========================  ==============  ==============================================
    powerpropagation_alpha     1.25 - 5        the paper's 1 to 5 (arXiv 2110.00296), where 1
                               by 0.25         would be plain pruning
    powerpropagation_sparsity  0.5 - 0.95      share of the weights below the head (ours)
                               by 0.05
    powerpropagation_prune_at  0 - 0.75        share of the steps before the cut (ours)
                               by 0.25
    =========================  ==============  ==============================================

    The other parameters are those of `suggest_finetuning`.
    """
    return Recipe(
        method="powerpropagation",
        settings={
            "alpha": trial.suggest_float("powerpropagation_alpha", 1.25, 5.0, step=0.25),
            "sparsity": trial.suggest_float("powerpropagation_sparsity", 0.5, 0.95, step=0.05),
            "prune_at": trial.suggest_float("powerpropagation_prune_at", 0.0, 0.75, step=0.25),
        },
        **suggest_finetuning(trial, problem, trainable_depth=1.0),
    )
