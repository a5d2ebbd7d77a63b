"""The search space of PAC-Net."""

from search_spaces.finetuning import suggest_finetuning
from search_spaces.problem import Problem
from search_spaces.recipe import Recipe
from search_spaces.space import Trial


def missing(problem: Problem) -> str | None:
    """Says that the backbone's own task is missing, on which it is retrained."""
    return None if problem.source_task else "a source_task in the config"


def pac_net(trial: Trial, problem: Problem) -> Recipe:
    """Draws recipes that prune, retrain what is kept on the source task, and train the rest.

    ======================  ==============  =================================================
    parameter               range           source
    ======================  ==============  =================================================
    pac_net_sparsity        0.5 - 0.95      share that is pruned; the paper's is 0.8
                            by 0.05         (arXiv 2206.05703)
    pac_net_penalty         1e-4 - 1, log   lambda; the paper's is 0.01
    pac_net_allocate_share  0.05 - 0.5      share of the compute for the source task (ours)
    ======================  ==============  =================================================

    The other parameters are those of `suggest_finetuning`.
    """
    return Recipe(
        method="pac_net",
        settings={
            "sparsity": trial.suggest_float("pac_net_sparsity", 0.5, 0.95, step=0.05),
            "penalty": trial.suggest_float("pac_net_penalty", 1e-4, 1.0, log=True),
            "allocate_share": trial.suggest_float("pac_net_allocate_share", 0.05, 0.5),
        },
        **suggest_finetuning(trial, problem, trainable_depth=1.0),
    )
