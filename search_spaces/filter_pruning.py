"""The search space of zero-shot filter pruning followed by finetuning."""

from math import floor, log2

from search_spaces.finetuning_draws import (
    suggest_class_weighting,
    suggest_mixing,
    suggest_optimization,
)
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
    """Prune the pretrained backbone's filters once, then finetune what is left.

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

    A dense recipe has no pruning parameters but the re-estimation of its norms: one recipe, not
    many that are the same.
    """
    low_batch, high_batch = _batch_sizes(problem.train_images)
    low_side, side_step = _resolutions(problem.native_resolution)
    return Recipe(
        method="filter_pruning",
        settings=_settings(trial),
        **suggest_optimization(trial),
        batch_size=_power_of_two(trial.suggest_int("batch_size", low_batch, high_batch, log=True)),
        label_smoothing=trial.suggest_float("label_smoothing", 0.0, 0.3),
        class_weighting=suggest_class_weighting(trial, problem),
        layer_decay=trial.suggest_float("layer_decay", 0.5, 1.0),
        trainable_depth=(depth := trial.suggest_float("trainable_depth", 0.0, 1.0, step=0.25)),
        resolution=trial.suggest_int(
            "resolution", low_side, problem.native_resolution, step=side_step
        ),
        augmentation=trial.suggest_float("augmentation", 0.0, 1.0) if depth > 0 else 0.0,
        **(suggest_mixing(trial) if depth > 0 else {}),
        target_flops=problem.rungs[trial.suggest_int("target_rung", 0, len(problem.rungs) - 1)],
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
