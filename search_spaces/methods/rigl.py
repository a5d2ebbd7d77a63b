"""The search space of RigL."""

from search_spaces.finetuning import suggest_finetuning
from search_spaces.problem import Problem
from search_spaces.recipe import Recipe, Setting
from search_spaces.space import Trial


def rigl(trial: Trial, problem: Problem) -> Recipe:
    """Draws recipes that train sparsely from the first step on and move the connections.

    ====================  =========================  ==========================================
    parameter             range                      source
    ====================  =========================  ==========================================
    rigl_sparsity         0.5, 0.55, ... 0.95        around the 0.8-0.95 of arXiv 2111.13445
    rigl_distribution     erk, uniform               the paper's two
    rigl_update_fraction  0.1 - 0.5                  around the 0.3 of arXiv 1911.11134
    rigl_updates          3 - 100, log               over the whole training (ours)
    ====================  =========================  ==========================================

    The other parameters are those of `suggest_finetuning`.
    """
    settings: dict[str, Setting] = {
        "sparsity": trial.suggest_float("rigl_sparsity", 0.5, 0.95, step=0.05),
        "distribution": trial.suggest_categorical("rigl_distribution", ("erk", "uniform")),
        "update_fraction": trial.suggest_float("rigl_update_fraction", 0.1, 0.5),
        "updates": trial.suggest_int("rigl_updates", 3, 100, log=True),
    }
    finetuning = suggest_finetuning(trial, problem, trainable_depth=1.0)
    return Recipe(method="rigl", settings=settings, **finetuning)
