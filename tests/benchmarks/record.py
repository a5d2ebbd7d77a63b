"""Records learning curves of this product's own trials, for replays of whole searches.

    make record                                        # resumes; nice, so it can run beside others
    make record WITH="--only gtsrb --recipes 50"       # a part of it
    make record WITH="--part 0/2"                      # one of two processes, each on one core

Each recipe is drawn at random from the joint space of seven methods, then trained once towards
every rung, because a recipe that aims higher has another schedule and so another curve. A
measurement holds the error on two halves of 300 validation images (a search sees half A; what it
reports is scored on half B), the error on 600 test images, and what was spent. A tenth of the
recipes is run with a second seed.

Tasks are small and grids low, so that a recipe takes about 25 seconds of one core a task: nine
hours for 300 recipes of four tasks. Where searches lead, and what a grown sweep's recipes
look like, is not in a table of random draws; its best recipes are what 300 draws hold.

Curves are appended to `runs/recorded/TASK.jsonl`, one line a trial, and packed into
`tests/benchmarks/curves/TASK.parquet` at the end (`--pack` does nothing else). What is in either is
not run again.
"""

import argparse
import json
import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import torch
from optuna.distributions import distribution_to_json
from optuna.samplers import RandomSampler
from timm.models import efficientnet
from torch import nn

from search_spaces.draws import Draw, draw
from search_spaces.joint import joint
from search_spaces.problem import Problem
from search_spaces.recipe import Recipe
from tests.benchmarks.curve_files import RANGES, TABLES, Recorded, append, pack, recorded_curves
from tests.checkout import SHARED
from trainables.backbones.build import Backbone, load_weights, normalisation
from trainables.backbones.source import BackboneSource
from trainables.errors import InfeasibleError
from trainables.finetune import Finetuning
from trainables.images.augment import model_inputs
from trainables.images.cache import image_cache
from trainables.images.store import Split, open_store
from trainables.images.tasks import TaskSource
from trainables.learning.evaluation import evaluate
from trainables.measurement import Measurement, Outcome
from trainables.rungs import rung_levels
from trainables.seeds import generator

RECIPES = 300
"""Recipes a task."""
SECOND_SEED_PERIOD = 10
"""One recipe in so many is run with a second seed."""
HALF_IMAGES = 300
"""Validation images of each half."""
TEST_IMAGES = 600
NICE = 19


@dataclass(frozen=True, kw_only=True)
class Table:
    """A task, a backbone and a grid of compute."""

    task: str
    """A folder of the data that lies beside the checkout."""
    model: str
    weights: str
    args: Mapping[str, Any]
    resolution: int
    levels: tuple[float, ...]

    @property
    def source(self) -> BackboneSource:
        """The backbone, whose weights lie beside the checkout."""
        weights = str(SHARED / "weights" / self.weights)
        return BackboneSource(model=self.model, weights=weights, args=dict(self.args))


_resnet = partial(
    Table,
    model="tests.trainables.backbones.cifar_resnet:cifar_resnet",
    weights="cifar_resnet20.safetensors",
    args={"depth": 20},
    resolution=24,
    levels=rung_levels(min_flops=3e9, max_flops=3e11, per_decade=3),
)
_mobilenet = partial(
    Table,
    model="tests.benchmarks.record:quarter_mobilenet",
    weights="mobilenetv1_025_imagenet_qat.safetensors",
    args={},
    resolution=48,
    levels=rung_levels(min_flops=2e8, max_flops=2e10, per_decade=3),
)
TASKS = (
    _resnet(task="kmnist10k"),
    _mobilenet(task="cifar10"),
    _resnet(task="gtsrb"),
    _mobilenet(task="deeppcb_defects"),
)


def quarter_mobilenet(num_classes: int) -> nn.Module:
    """The quarter-width MobileNetV1, which timm builds and has no name for."""
    model: nn.Module = efficientnet._gen_mobilenet_v1(
        "mobilenetv1_100", 0.25, num_classes=num_classes, pad_type="same"
    )
    return model


def main() -> None:
    """Records what is missing, one recipe of every task after another, and packs it."""
    arguments = _arguments()
    tables = [table for table in TASKS if arguments.only in ("", table.task)]
    if not arguments.pack:
        os.nice(NICE - os.nice(0))
        torch.set_num_threads(1)
        recorders = [Recorder(table) for table in tables]
        part, parts = map(int, arguments.part.split("/"))
        for number in range(part, arguments.recipes, parts):
            for recorder in recorders:
                recorder.record(number)
            print(time.strftime("%H:%M:%S"), "recipe", number, flush=True)
    for table in tables:
        path = pack(table.task)
        print(f"{path}: {path.stat().st_size / 1e6:.2f} MB")


class Recorder:
    """Runs the recipes of one table."""

    def __init__(self, table: Table) -> None:
        self._table = table
        store = open_store(
            TaskSource(source=str(SHARED / "data" / table.task)),
            resolution=table.resolution,
            cache_dir=image_cache(None),
        )
        held = _shuffled(store.splits["validation"], 2 * HALF_IMAGES)
        half_a, self._half_b = _rows(held, slice(0, None, 2)), _rows(held, slice(1, None, 2))
        self._test = _shuffled(store.splits["test"], TEST_IMAGES)
        self._store = replace(store, splits={"train": store.splits["train"], "validation": half_a})
        counts = store.splits["train"].labels.bincount()
        self._problem = Problem(
            rungs=table.levels,
            native_resolution=table.resolution,
            train_images=int(counts.sum()),
            classes=len(store.class_names),
            class_imbalance=float(counts.max() / counts[counts > 0].min()),
        )
        self._backbone = Backbone(source=table.source, weights=load_weights(table.source))
        self._done = {curve.key for curve in recorded_curves(table.task)}
        _note(table.task, self._problem, half_a)

    def record(self, number: int) -> None:
        """Runs recipe `number` towards every rung, with one seed or two."""
        drawn = draw(joint, RANGES, self._problem, RandomSampler(seed=number))
        for seed in (0, 1) if number % SECOND_SEED_PERIOD == 0 else (0,):
            for level in self._table.levels:
                if (number, level, seed) not in self._done:
                    self._run(number, drawn, replace(drawn.recipe, target_flops=level), seed)

    def _run(self, number: int, drawn: Draw, recipe: Recipe, seed: int) -> None:
        curve = Recorded(
            number=number,
            origin="random",
            seed=seed,
            recipe=recipe.to_dict(),
            params=_aimless(drawn.params),
            distributions=_aimless(
                {name: distribution_to_json(d) for name, d in drawn.distributions.items()}
            ),
            points=tuple(self._points(recipe, seed)),
        )
        append(self._table.task, curve)

    def _points(self, recipe: Recipe, seed: int) -> Iterator[dict[str, Any]]:
        try:
            trial = Finetuning(
                recipe=recipe,
                seed=seed,
                backbone=self._backbone,
                store=self._store,
                levels=self._table.levels,
                mirror=False,
                device=torch.device("cpu"),
            )
        except InfeasibleError as error:
            spent = error.spent_flops
            yield {"outcome": "infeasible", "reason": str(error), "spent": spent}
            return
        outcome = Outcome.RUNNING
        while outcome is Outcome.RUNNING:
            trial.advance()
            outcome = trial.outcome
            if outcome is Outcome.DIVERGED:
                yield {"outcome": "diverged", "spent": trial.unbilled_flops}
                return
            assert trial.measurement is not None
            measured = self._measured(trial, trial.measurement, side=recipe.resolution)
            yield {"outcome": outcome.value, **measured}

    def _measured(
        self, trial: Finetuning, measurement: Measurement, *, side: int
    ) -> dict[str, Any]:
        """The measurement with the errors that the trial itself never sees."""
        mean, std = normalisation(self._table.source, trial.model)
        inputs = partial(model_inputs, resolution=side, mean=mean, std=std)
        error_b, _ = evaluate(trial.measured_model, self._half_b, inputs)
        test_error, _ = evaluate(trial.measured_model, self._test, inputs)
        return {**measurement.to_dict(), "val_error_b": error_b, "test_error": test_error}


def _note(task: str, problem: Problem, half_a: Split) -> None:
    """Writes down what a replay must know of the task."""
    path = TABLES / "tasks.json"
    tasks = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    most_common = int(half_a.labels.bincount().max())
    facts = {"images": len(half_a), "most_common": most_common, "problem": asdict(problem)}
    facts = json.loads(json.dumps(facts))
    if tasks.get(task) != facts:
        text = json.dumps(tasks | {task: facts}, indent=2)
        path.write_text(text + "\n", encoding="utf-8")


def _shuffled(split: Split, images: int) -> Split:
    order = torch.randperm(len(split), generator=generator("record"))[:images]
    return Split(images=split.images[order], labels=split.labels[order])


def _rows(split: Split, rows: slice) -> Split:
    return Split(images=split.images[rows], labels=split.labels[rows])


def _aimless(named: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in named.items() if name != "target_rung"}


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Records learning curves of own trials.")
    parser.add_argument("--only", default="", help="one task")
    parser.add_argument("--recipes", type=int, default=RECIPES)
    parser.add_argument("--part", default="0/1", help="every n-th recipe, as 0/2 and 1/2")
    parser.add_argument("--pack", action="store_true", help="pack what is recorded, run nothing")
    return parser.parse_args()


if __name__ == "__main__":
    main()
