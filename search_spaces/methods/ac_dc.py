"""The search space of AC/DC."""

from search_spaces.finetuning import suggest_finetuning
from search_spaces.problem import Problem
from search_spaces.recipe import Recipe, Setting
from search_spaces.space import Trial


def ac_dc(trial: Trial, problem: Problem) -> Recipe:
    """Draws recipes that train everything, by turns sparse and dense, and sparse in the end.

    =================  ============================  ==========================================
    parameter          range                         source
    =================  ============================  ==========================================
    ac_dc_sparsity     0.5, 0.55, ... 0.95           around the 0.8-0.95 of arXiv 2111.13445
    ac_dc_scope        layer, global                 where weights are ranked
    ac_dc_cycles       1 - 8, log                    pairs of a compressed and a dense phase (ours)
    ac_dc_warm_up      0, 0.05, ... 0.2              dense share of the steps before them (ours)
    ac_dc_finish       0.15, 0.25, 0.35, 0.45        compressed share of the steps after them (ours)
    =================  ============================  ==========================================

    The other parameters are those of `suggest_finetuning`.
    """
    settings: dict[str, Setting] = {
        "sparsity": trial.suggest_float("ac_dc_sparsity", 0.5, 0.95, step=0.05),
        "scope": trial.suggest_categorical("ac_dc_scope", ("layer", "global")),
        "cycles": trial.suggest_int("ac_dc_cycles", 1, 8, log=True),
        "warm_up": trial.suggest_float("ac_dc_warm_up", 0.0, 0.2, step=0.05),
        "finish": trial.suggest_float("ac_dc_finish", 0.15, 0.45, step=0.1),
    }
    finetuning = suggest_finetuning(trial, problem, trainable_depth=1.0)
    return Recipe(method="ac_dc", settings=settings, **finetuning)
