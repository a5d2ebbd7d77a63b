"""What sparse methods promise, looked at in models, step by step."""

from collections.abc import Iterator
from typing import Any

from optuna.samplers import RandomSampler
from torch import nn

from search_spaces.draws import draw
from search_spaces.problem import Problem
from search_spaces.recipe import Optimizer, Recipe, Schedule
from search_spaces.space import load_space
from tests.trainables.recipes import SMALL
from trainables.backbones import build as backbones
from trainables.backbones.layers import backbone_weights
from trainables.finetune import Finetuning
from trainables.method import Conditions, load_method

WEIGHTS = 370_608
"""Values of test_resnet's convolutions."""
HEAD = 96 * 4 + 4
PARAMS = 373_076
"""All values of test_resnet with a head of four classes."""
OPTIMIZERS: list[dict[str, Any]] = [
    {"optimizer": Optimizer.SGD, "weight_decay": 1e-2, "clip_norm": 0.1},
    {"optimizer": Optimizer.ADAMW, "weight_decay": 0.1, "mixup": 0.2},
    {"optimizer": Optimizer.SCHEDULE_FREE_ADAMW, "schedule": Schedule.CONSTANT},
]
"""What moves weights that have no gradient, each in its own way."""
PROBLEM = Problem(
    rungs=(2e9, 4e9), native_resolution=16, train_images=96, classes=4, sparse_backbone=True
)


def weightless(num_classes: int) -> nn.Module:
    """Nothing below its head could be masked."""
    return nn.Sequential(
        nn.BatchNorm2d(3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, num_classes)
    )


def zeros(model: nn.Module) -> int:
    """Values of its convolutions, or linear layers below the head, that are zero."""
    return sum(zeros_by_weight(model).values())


def zeros_by_weight(model: nn.Module) -> dict[str, int]:
    """The same, weight by weight."""
    weights = backbone_weights(model)
    return {name: w.numel() - int(w.count_nonzero()) for name, w in weights.items()}


def steps(trial: Finetuning) -> Iterator[tuple[int, nn.Module]]:
    """Trains to the trial's end, giving after each step its number, from 0, and the model."""
    for step in range(trial.stops[-1].steps):
        assert trial.train_to(step + 1)
        yield step, trial.model


def drawn_recipes(method: str, *, number: int = 64, model: nn.Module | None = None) -> list[Recipe]:
    """Recipes from the method's space, all of which its check lets pass on `model`, if not on
    test_resnet."""
    space = load_space(method)
    drawn = [draw(space, {}, PROBLEM, RandomSampler(seed=seed)).recipe for seed in range(number)]
    model = model or backbones.build(SMALL, num_classes=4)
    conditions = Conditions(model=model, source_task=False)
    for recipe in drawn:
        load_method(method).check(recipe, conditions)
    return drawn
