"""What every space of finetuning asks for: the optimiser with its own ranges, and the mixing."""

from collections.abc import Mapping
from typing import Any

from search_spaces.problem import Problem
from search_spaces.recipe import Optimizer, Schedule
from search_spaces.space import Trial

MIXUP = 0.2
"""Of the 0.1-0.4 that gain most on ImageNet (arXiv 1710.09412)."""
CUTMIX = 1.0
"""The paper's own (arXiv 1905.04899)."""
CLIP_NORM = 1.0
"""The usual one (as in arXiv 2010.11929)."""
SKEWED = 2.0
"""Class imbalance from which weighing the classes is worth a parameter."""


def suggest_optimization(trial: Trial) -> Mapping[str, Any]:
    """Optimiser, schedule, learning rate, weight decay and clipping, by the recipe's names.

    Adam's steps have the learning rate's size and SGD's the gradient's times it, so that one range
    cannot serve both: the two of Adam's kind have parameters of their own. Names rather than
    a factor, so that a sampler never takes what it learnt of SGD's rate for Adam's, and a value
    fixed by name is the value that trains. A schedule-free optimiser has no schedule to choose.
    """
    optimizers = [kind.value for kind in Optimizer]
    optimizer = Optimizer(trial.suggest_categorical("optimizer", optimizers))
    schedule = Schedule.CONSTANT
    if optimizer is not Optimizer.SCHEDULE_FREE_ADAMW:
        falling = [kind.value for kind in Schedule if kind is not Schedule.CONSTANT]
        schedule = Schedule(trial.suggest_categorical("schedule", falling))
    if optimizer is Optimizer.SGD:
        learning_rate = trial.suggest_float("learning_rate", 1e-4, 1e-1, log=True)
        weight_decay = trial.suggest_float("weight_decay", 1e-6, 1e-2, log=True)
    else:
        learning_rate = trial.suggest_float("adamw_rate", 1e-5, 3e-2, log=True)
        weight_decay = trial.suggest_float("adamw_decay", 1e-4, 1e-1, log=True)
    return {
        "optimizer": optimizer,
        "schedule": schedule,
        "learning_rate": learning_rate,
        "weight_decay": weight_decay,
        "clip_norm": trial.suggest_categorical("clip_norm", (0.0, CLIP_NORM)),
    }


def suggest_mixing(trial: Trial) -> Mapping[str, Any]:
    """Strengths of mixup and CutMix, by the recipe's names: one of the two at most."""
    mixing = trial.suggest_categorical("mixing", ("none", "mixup", "cutmix"))
    return {
        "mixup": MIXUP if mixing == "mixup" else 0.0,
        "cutmix": CUTMIX if mixing == "cutmix" else 0.0,
    }


def suggest_class_weighting(trial: Trial, problem: Problem) -> float:
    """The recipe's `class_weighting`; none, and not asked for, where the task is not skewed."""
    if problem.class_imbalance < SKEWED:
        return 0.0
    return trial.suggest_float("class_weighting", 0.0, 1.0)
