"""The search space of magnitude pruning, at once or while the model is trained."""

from search_spaces.finetuning import suggest_finetuning
from search_spaces.problem import Problem
from search_spaces.recipe import Recipe, Setting
from search_spaces.space import Trial


def magnitude(trial: Trial, problem: Problem) -> Recipe:
    """Draws recipes that hold the backbone's smallest weights at zero.

    ========================  =====================  ==========================================
    parameter                 range                  source
    ========================  =====================  ==========================================
    magnitude_sparsity        0.5, 0.55, ... 0.95    around the 0.8-0.95 of arXiv 2111.13445
    magnitude_scope           layer, global          where weights are ranked
    magnitude_sparsification  one_shot, gradual      before the first step, or by the schedule
                                                     of arXiv 1710.01878
    batch_norm_repair         no, yes                of one_shot: statistics re-estimated on 256
                                                     images (ours)
    magnitude_ramp            0.25, 0.5, 0.75        of gradual: share of the steps until the
                                                     final sparsity (ours)
    ========================  =====================  ==========================================

    The other parameters are those of `suggest_finetuning`; gradual pruning trains at every depth.
    """
    settings: dict[str, Setting] = {
        "sparsity": trial.suggest_float("magnitude_sparsity", 0.5, 0.95, step=0.05),
        "scope": trial.suggest_categorical("magnitude_scope", ("layer", "global")),
    }
    sparsification = trial.suggest_categorical("magnitude_sparsification", ("one_shot", "gradual"))
    settings["sparsification"] = sparsification
    depth = None
    if sparsification == "gradual":
        depth = 1.0
        settings["ramp"] = trial.suggest_float("magnitude_ramp", 0.25, 0.75, step=0.25)
    else:
        settings["batch_norm_repair"] = trial.suggest_categorical(
            "batch_norm_repair", (False, True)
        )
    finetuning = suggest_finetuning(trial, problem, trainable_depth=depth)
    return Recipe(method="magnitude", settings=settings, **finetuning)
