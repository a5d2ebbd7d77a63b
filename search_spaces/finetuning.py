"""Parameters of every space that finetunes: the optimiser with its own ranges, and the mixing."""

from collections.abc import Mapping
from math import floor, log2
from typing import Any

from search_spaces.problem import Problem
from search_spaces.recipe import Optimizer, Schedule
from search_spaces.space import Trial

TARGET = "target_rung"
"""Name of the parameter by which the built-in spaces choose the rung that a recipe aims at."""
SIDE = "resolution"
"""Name of the parameter for the side of the images, whose range goes by the task's own."""
MIXUP = 0.2
"""One of the values 0.1-0.4 that gain most on ImageNet (arXiv 1710.09412)."""
CUTMIX = 1.0
"""The paper's own (arXiv 1905.04899)."""
CLIP_NORM = 1.0
"""The usual one (as in arXiv 2010.11929)."""
SKEWED = 2.0
"""Class imbalance from which weighing the classes is worth a parameter."""


def suggest_finetuning(
    trial: Trial,
    problem: Problem,
    *,
    trainable_depth: float | None = None,
    layer_decay: float | None = None,
) -> Mapping[str, Any]:
    """Suggests every field of a recipe but its method and settings, by the recipe's names.

    An argument that is given is fixed and not asked for. Where the head alone is trained, it learns
    from stored features: there is nothing to augment or mix. A parameter that is not called as its
    field is among those of `search_spaces.names`.

    =================  ============================  ==========================================
    parameter          range                         source
    =================  ============================  ==========================================
    optimizer          sgd, adamw,                   Nesterov's as in Nevis'22
                       schedule_free_adamw           (arXiv 2211.11747); 1711.05101; 2405.15682
    schedule           cosine, linear,               of sgd and adamw; a schedule-free one has none
                       warmup_stable_decay           (1608.03983; ours; 2405.18392)
    learning_rate      1e-4 - 1e-1, log              sgd: Nevis'22
    weight_decay       1e-6 - 1e-2, log              sgd: around 1e-4 of Nevis'22
    adamw_rate         1e-5 - 3e-2, log              its learning rate, and that of schedule-free,
                                                     whose library says: 1-10 times AdamW's
    adamw_decay        1e-4 - 1e-1, log              their weight decay: around the papers' 1e-2
    clip_norm          0, 1                          of the gradient; 0 never clips (ours)
    batch_size         powers of two, log            two octaves around Nevis'22's rule
    label_smoothing    0 - 0.3                       Nevis'22
    class_weighting    0 - 1                         0 counts images alike, 1 classes; asked where
                                                     one class has twice another's images (ours)
    layer_decay        0.5 - 1                       ours
    trainable_depth    0, 0.25, ... 1                ours: from the head alone to everything
    resolution         1/2, 3/4, 1 of the native     pixels; at least 16 (ours)
    augmentation       0 - 1                         ours; none where the head alone is trained,
                                                     which then learns from stored features
    mixing             none, mixup, cutmix           strength 0.2 (1710.09412), 1 (1905.04899); not
                                                     asked where the head alone is trained
    target_rung        every rung                    index of the compute aimed at
    =================  ============================  ==========================================
    """
    low_batch, high_batch = _batch_sizes(problem.train_images)
    low_side, side_step = _resolutions(problem.native_resolution)
    values: dict[str, Any] = dict(suggest_optimization(trial))
    values["batch_size"] = _power_of_two(
        trial.suggest_int("batch_size", low_batch, high_batch, log=True)
    )
    values["label_smoothing"] = trial.suggest_float("label_smoothing", 0.0, 0.3)
    values["class_weighting"] = suggest_class_weighting(trial, problem)
    if layer_decay is None:
        layer_decay = trial.suggest_float("layer_decay", 0.5, 1.0)
    if trainable_depth is None:
        trainable_depth = trial.suggest_float("trainable_depth", 0.0, 1.0, step=0.25)
    values |= {"layer_decay": layer_decay, "trainable_depth": trainable_depth}
    values["resolution"] = trial.suggest_int(
        "resolution", low_side, problem.native_resolution, step=side_step
    )
    values["augmentation"] = 0.0
    if trainable_depth > 0:
        values["augmentation"] = trial.suggest_float("augmentation", 0.0, 1.0)
        values |= suggest_mixing(trial)
    target = trial.suggest_int(TARGET, 0, len(problem.rungs) - 1)
    return values | {"target_flops": problem.rungs[target]}


def suggest_optimization(trial: Trial) -> Mapping[str, Any]:
    """Suggests optimiser, schedule, rate, decay and clipping, by the recipe's names.

    Adam's steps have the learning rate's size and SGD's the gradient's times it, so that one range
    cannot serve both: `adamw_rate` and `adamw_decay` are the learning rate and weight decay of the
    two optimisers of Adam's kind. They are parameters of their own rather than a factor, so that a
    sampler never takes what it learnt of SGD's rate for Adam's, and a value fixed by name is the
    value that trains. A schedule-free optimiser has no schedule to choose.
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
    """Suggests the strengths of mixup and CutMix, by the recipe's names: one of the two at most."""
    mixing = trial.suggest_categorical("mixing", ("none", "mixup", "cutmix"))
    return {
        "mixup": MIXUP if mixing == "mixup" else 0.0,
        "cutmix": CUTMIX if mixing == "cutmix" else 0.0,
    }


def suggest_class_weighting(trial: Trial, problem: Problem) -> float:
    """Suggests the recipe's `class_weighting`; 0, and not asked for, where no class is rare."""
    if problem.class_imbalance < SKEWED:
        return 0.0
    return trial.suggest_float("class_weighting", 0.0, 1.0)


def _batch_sizes(train_images: int) -> tuple[int, int]:
    """Smallest and largest batch, both powers of two.

    Nevis'22 takes min(512, max(16, 2^floor(log2(0.0025 N)))) for N training images. Here a quarter
    to four times that, within 16-128 or up to the rule itself, and never more than N.
    """
    centre = min(512, max(16, 2 ** floor(log2(max(1.0, 0.0025 * train_images)))))
    most = 2 ** floor(log2(train_images))
    low, high = max(16, centre // 4), max(centre, min(4 * centre, 128))
    return min(low, most), min(high, most)


def _power_of_two(size: int) -> int:
    """The nearest power of two by ratio: batches keep their order and few distinct shapes run."""
    return int(2 ** round(log2(size)))


def _resolutions(native: int) -> tuple[int, int]:
    """Smallest side and the step to the native one: halves, three quarters, the whole.

    The step is a multiple of 8 pixels, so that the sides are wherever the native one is.
    """
    step = 8 * max(1, round(native / 32))
    steps = max((n for n in (1, 2) if native - n * step >= 16), default=0)
    return native - steps * step, step
