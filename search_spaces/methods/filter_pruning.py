"""The search space of zero-shot filter pruning followed by finetuning."""

from search_spaces.finetuning import suggest_finetuning
from search_spaces.problem import Problem
from search_spaces.recipe import Recipe, Setting
from search_spaces.space import Trial

CRITERIA = (
    "l1",
    "l2",
    "batch_norm_scale",
    "geometric_median",
    "taylor",
    "fisher",
    "random",
    "folding",
)
"""The names of `trainables.pruning.Criterion`."""


def filter_pruning(trial: Trial, problem: Problem) -> Recipe:
    """Draws recipes that prune the backbone's filters once, then finetune the rest.

    After "Towards Compute-Optimal Transfer Learning" (arXiv 2304.13164): filters go *before* any
    finetuning, so that every training step is cheaper.

    =================  ============================  ==========================================
    parameter          range                         source
    =================  ============================  ==========================================
    pruning_ratio      0, 0.05, ... 0.95             share of the filters that go; 0 is dense,
                                                     which one random draw in 20 tries
    criterion          l1, l2, geometric_median,     l1 as in the paper; FPGM (arXiv 1811.00250),
                       taylor, fisher, folding,      Molchanov et al. (1906.10771), Theis et al.
                       batch_norm_scale, random      (1801.05787), model folding (2502.10216),
                                                     network slimming (1708.06519); random is the
                                                     control (ours)
    width_rule         inner, all                    inner keeps the size of the representation
                                                     as in the paper; all shrinks it too (ours)
    scope              layer, global, isomorphic     where filters are ranked: layer as in the
                                                     paper, isomorphic of arXiv 2407.04616
    batch_norm_repair  no, yes                       statistics re-estimated on 256 images
    ridge_repair       no, yes                       GRAIL (arXiv 2602.23795), on 256 images
    =================  ============================  ==========================================

    The other parameters are those of `suggest_finetuning`. A dense recipe has no pruning parameters
    but the re-estimation of its norms: one recipe, not many that are the same.
    """
    return Recipe(
        method="filter_pruning", settings=_settings(trial), **suggest_finetuning(trial, problem)
    )


def _settings(trial: Trial) -> dict[str, Setting]:
    ratio = trial.suggest_float("pruning_ratio", 0.0, 0.95, step=0.05)
    repair = trial.suggest_categorical("batch_norm_repair", (False, True))
    if ratio == 0:
        return {"pruning_ratio": ratio, "batch_norm_repair": repair}
    return {
        "pruning_ratio": ratio,
        "batch_norm_repair": repair,
        "criterion": trial.suggest_categorical("criterion", CRITERIA),
        "width_rule": trial.suggest_categorical("width_rule", ("inner", "all")),
        "scope": trial.suggest_categorical("scope", ("layer", "global", "isomorphic")),
        "ridge_repair": trial.suggest_categorical("ridge_repair", (False, True)),
    }
