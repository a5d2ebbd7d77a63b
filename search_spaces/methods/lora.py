"""The search space of low-rank updates."""

from search_spaces.finetuning import suggest_finetuning
from search_spaces.problem import Problem
from search_spaces.recipe import Recipe
from search_spaces.space import Trial


def lora(trial: Trial, problem: Problem) -> Recipe:
    """Draws recipes that move every weight by a matrix of low rank, and the head.

    After arXiv 2106.09685.

    =================  ============================  ==========================================
    parameter          range                         source
    =================  ============================  ==========================================
    lora_rank          1 - 32, log                   the paper's 1-64 and a little less
    lora_alpha         1 - 64, log                   updates are scaled by alpha / rank (ours)
    lora_norms         no, yes                       whether norms are trained too (ours)
    =================  ============================  ==========================================

    The other parameters are those of `suggest_finetuning`.
    """
    settings = {
        "rank": trial.suggest_int("lora_rank", 1, 32, log=True),
        "alpha": trial.suggest_float("lora_alpha", 1.0, 64.0, log=True),
        "norms": trial.suggest_categorical("lora_norms", (False, True)),
    }
    return Recipe(
        method="lora",
        settings=settings,
        **suggest_finetuning(trial, problem, trainable_depth=1.0),
    )
