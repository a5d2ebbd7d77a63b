"""The search space of WoodFisher."""

from search_spaces.finetuning import suggest_finetuning
from search_spaces.problem import Problem
from search_spaces.recipe import Recipe
from search_spaces.space import Trial


def woodfisher(trial: Trial, problem: Problem) -> Recipe:
    """Draws recipes that remove weights by an empirical Fisher, then train at any depth.

    ============================  ====================  ========================================
    parameter                     range                 source
    ============================  ====================  ========================================
    woodfisher_sparsity           0.5 - 0.98            around the 0.8-0.95 of arXiv 2111.13445
    woodfisher_scope              layer, global         arXiv 2004.14340 has both
    woodfisher_block_size         16, 32, 64            ours; the paper's blocks are larger, and
                                                        memory grows with them
    woodfisher_samples            32 - 512, log         around the paper's hundreds (ours)
    woodfisher_dampening          1e-7 - 1e-1, log      around the paper's 1e-5 (ours)
    woodfisher_batch_norm_repair  true, false           ours
    ============================  ====================  ========================================

    The other parameters are those of `suggest_finetuning`.
    """
    settings = {
        "sparsity": trial.suggest_float("woodfisher_sparsity", 0.5, 0.98),
        "scope": trial.suggest_categorical("woodfisher_scope", ("layer", "global")),
        "block_size": trial.suggest_categorical("woodfisher_block_size", (16, 32, 64)),
        "samples": trial.suggest_int("woodfisher_samples", 32, 512, log=True),
        "dampening": trial.suggest_float("woodfisher_dampening", 1e-7, 1e-1, log=True),
        "batch_norm_repair": trial.suggest_categorical(
            "woodfisher_batch_norm_repair", (True, False)
        ),
    }
    finetuning = suggest_finetuning(trial, problem)
    return Recipe(method="woodfisher", settings=settings, **finetuning)
