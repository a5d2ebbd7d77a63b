"""Every way to transfer, on the same axes: error against training compute.

A ResNet-20 that knows CIFAR-10 learns three tasks at 32 pixels, at three levels of training
compute, everything that a method does included. Each method has the same small budget for its
learning rate: three of them, tried on validation images with a seed of their own at the middle
level of each task. Three other seeds are then trained at every level and measured on the test
images. `keep_sparse` starts from backbones that were made sparse on CIFAR-10 by the other methods;
what that cost is not counted, because such a backbone arrives sparse.

About half an hour on two cores. Runs are kept in the temporary folder and not repeated: delete
`bench-methods/` there to start over.
"""

import hashlib
import json
import multiprocessing
import os
import statistics
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from search_spaces.recipe import Recipe, Setting
from tests.benchmarks.publish import publish
from tests.checkout import SHARED
from tests.trainables.backbones import cifar_resnet
from trainables.backbones.build import Backbone, load_weights
from trainables.backbones.source import BackboneSource
from trainables.errors import InfeasibleError
from trainables.finetune import Finetuning
from trainables.images.store import ImageStore, Split, open_store
from trainables.images.tasks import TaskSource
from trainables.measurement import Measurement

WEIGHTS = SHARED / "weights" / "cifar_resnet20.safetensors"
SOURCE_TASK = "cifar10"
TASKS = ("fashion_mnist", "gtsrb", "kmnist10k")
RESOLUTION = 32
LEVELS = (4e10, 1e11, 2.5e11)
"""Training FLOPs; a dense step on 16 images takes 3.9e9."""
UPSTREAM_FLOPS = 1e12
"""On CIFAR-10, to make a sparse backbone."""
BATCH = 16
SPARSITY = 0.8
CHOOSING_SEED = 100
SEEDS = (0, 1, 2)
FULL = (0.03, 0.1, 0.3)
"""Learning rates tried where the backbone is trained, by SGD."""
HEAD = (0.1, 0.3, 1.0)
"""And where little more than a new head is."""


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One method with settings of its own."""

    name: str
    method: str
    settings: Mapping[str, Setting] = field(default_factory=dict, hash=False)
    trainable_depth: float = 1.0
    learning_rates: tuple[float, ...] = FULL
    upstream: str | None = None
    """The method that made the backbone sparse; None for the dense backbone."""
    levels: tuple[float, ...] = LEVELS


SPARSE: dict[str, dict[str, Setting]] = {
    "magnitude": {"sparsification": "gradual", "ramp": 0.5, "scope": "global"},
    "woodfisher": {"scope": "global", "samples": 64, "dampening": 1e-2},
    "ac_dc": {"scope": "global"},
    "rigl": {"distribution": "erk"},
}
"""Methods that make a backbone as sparse as asked, with the settings that they have here."""
THRESHOLDS = {"initial_threshold": 0.3, "final_threshold": 2.5}
"""Settings of `str`, which finds its own sparsity: about the same."""

ARMS: tuple[Arm, ...] = (
    Arm(name="full", method="full"),
    Arm(name="last stages, 0.4", method="last_stages", trainable_depth=0.4),
    Arm(name="norm and head", method="norm_and_head", learning_rates=HEAD),
    Arm(name="linear probe", method="linear_probe", trainable_depth=0.0, learning_rates=HEAD),
    Arm(name="from scratch", method="from_scratch"),
    *(
        Arm(
            name=f"filter pruning, {ratio}",
            method="filter_pruning",
            settings={
                "pruning_ratio": ratio,
                "criterion": "l1",
                "width_rule": "inner",
                "scope": "layer",
                "batch_norm_repair": True,
                "ridge_repair": False,
            },
        )
        for ratio in (0.5, 0.75)
    ),
    *(
        Arm(name=method, method=method, settings={"sparsity": SPARSITY, **settings})
        for method, settings in SPARSE.items()
    ),
    Arm(name="str", method="str", settings=THRESHOLDS),
    *(
        Arm(
            name=f"{method}, linear",
            method=method,
            settings={"sparsity": SPARSITY, "batch_norm_repair": True, **settings},
            trainable_depth=0.0,
            learning_rates=HEAD,
        )
        for method, settings in (
            ("magnitude", {"scope": "global"}),
            ("woodfisher", SPARSE["woodfisher"]),
        )
    ),
    Arm(
        name="powerpropagation",
        method="powerpropagation",
        settings={"alpha": 2.0, "sparsity": SPARSITY},
    ),
    Arm(name="pac_net", method="pac_net", settings={"sparsity": SPARSITY, "allocate_share": 0.2}),
    Arm(
        name="swr, 0.3",
        method="swr",
        settings={"budget": 0.3, "granularity": "filter", "penalty": 1.0},
    ),
    Arm(name="taps, 0.3", method="taps", settings={"budget": 0.3, "penalty": 1.0}),
    Arm(
        name="fish_mask, 0.05",
        method="fish_mask",
        settings={"share": 0.05, "samples": 64},
        learning_rates=HEAD,
    ),
    Arm(name="lora, rank 4", method="lora", settings={"rank": 4, "alpha": 8.0, "norms": True}),
    *(
        Arm(
            name=f"keep_sparse of {upstream}, {regime}",
            method="keep_sparse",
            trainable_depth=depth,
            learning_rates=rates,
            upstream=upstream,
            levels=LEVELS[-1:],
        )
        for regime, depth, rates in (("linear", 0.0, HEAD), ("full", 1.0, FULL))
        for upstream in (*SPARSE, "str")
    ),
)


@dataclass(frozen=True, kw_only=True)
class Run:
    """One training run."""

    arm: Arm
    task: str
    level: float
    learning_rate: float
    seed: int
    split: str
    """The images that the error is measured on."""

    @property
    def key(self) -> str:
        """The same for equal runs, whatever the arm is called and what else it is run with."""
        values = asdict(self)
        for name in ("name", "learning_rates", "levels"):
            del values["arm"][name]
        return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]


def main() -> None:
    """Runs all arms, as many side by side as there are cores, and prints the tables."""
    if missing := [path for path in (WEIGHTS, SHARED / "data") if not path.exists()]:
        raise SystemExit(f"{missing[0]} is missing; lay the shared data beside the checkout.")
    processes = os.cpu_count() or 1
    with multiprocessing.get_context("spawn").Pool(processes, torch.set_num_threads, (1,)) as pool:
        pool.map(_make_sparse, sorted({arm.upstream for arm in ARMS if arm.upstream}), chunksize=1)
        finished = Finished(pool.imap_unordered)
        rates = _choose_rates(finished)
        runs = [
            Run(arm=arm, task=task, level=level, learning_rate=rate, seed=seed, split="test")
            for (arm, task), rate in rates.items()
            for level in arm.levels
            for seed in SEEDS
        ]
        results = finished.all(runs)
    publish("methods", title="Ways to transfer", result=_result(runs, results, rates))


class Finished:
    """Runs that were run, kept in a file from one call to the next."""

    def __init__(self, execute: Callable[..., Iterable[tuple[str, dict[str, Any] | None]]]) -> None:
        self._execute = execute
        self._path = _folder() / "runs.jsonl"
        lines = self._path.read_text().splitlines() if self._path.exists() else []
        self._known = dict(map(json.loads, lines))

    def all(self, runs: Sequence[Run]) -> list[Measurement | None]:
        """The measurement of each run; None where it could not be made, or diverged."""
        new = {run.key: run for run in runs if run.key not in self._known}
        longest_first = sorted(new.values(), key=lambda run: -run.level)
        with self._path.open("a") as file:
            for number, (key, value) in enumerate(self._execute(_train, longest_first), start=1):
                self._known[key] = value
                file.write(json.dumps([key, value]) + "\n")
                file.flush()
                print(f"\r{number} of {len(new)} runs", end="", flush=True)
        found = [self._known[run.key] for run in runs]
        return [Measurement.from_dict(values) if values else None for values in found]


def _choose_rates(finished: Finished) -> dict[tuple[Arm, str], float]:
    runs = [
        Run(arm=arm, task=task, level=level, learning_rate=rate, seed=seed, split="validation")
        for arm in ARMS
        for task in TASKS
        for rate in arm.learning_rates
        for level, seed in [(LEVELS[1], CHOOSING_SEED)]
    ]
    best: dict[tuple[Arm, str], tuple[float, float]] = {}
    for run, measured in zip(runs, finished.all(runs), strict=True):
        found = (measured.val_error if measured else 1.0), run.learning_rate
        key = run.arm, run.task
        best[key] = min(best.get(key, found), found)
    return {key: rate for key, (_, rate) in best.items()}


def _train(run: Run) -> tuple[str, dict[str, Any] | None]:
    try:
        trial = _trial(run)
        trial.advance()
    except InfeasibleError:
        return run.key, None
    return run.key, trial.measurement.to_dict() if trial.measurement else None


def _trial(run: Run) -> Finetuning:
    arm = run.arm
    store = _store(run.task)
    return Finetuning(
        recipe=Recipe(
            method=arm.method,
            settings=arm.settings,
            learning_rate=run.learning_rate,
            weight_decay=5e-4,
            batch_size=BATCH,
            label_smoothing=0.0,
            layer_decay=1.0,
            trainable_depth=arm.trainable_depth,
            resolution=RESOLUTION,
            augmentation=0.0,
            target_flops=run.level,
        ),
        seed=run.seed,
        backbone=_backbone(arm.upstream),
        store=replace(store, splits={**store.splits, "validation": store.splits[run.split]}),
        levels=(run.level,),
        mirror=False,
        device=torch.device("cpu"),
        source_task=lambda: _store(SOURCE_TASK),
    )


@cache
def _backbone(upstream: str | None) -> Backbone:
    source = BackboneSource(
        model=f"{cifar_resnet.__name__}:{cifar_resnet.cifar_resnet.__name__}",
        weights=str(_sparse_weights(upstream) if upstream else WEIGHTS),
        args={"depth": 20},
    )
    return Backbone(source=source, weights=load_weights(source))


@cache
def _store(task: str) -> ImageStore:
    """The task, with every third test image: a look at all would cost more than a short run."""
    store = open_store(
        TaskSource(source=str(SHARED / "data" / task), max_validation_images=700),
        resolution=RESOLUTION,
        cache_dir=_folder() / "images",
    )
    test = store.splits["test"]
    third = Split(images=test.images[::3], labels=test.labels[::3])
    return replace(store, splits={**store.splits, "test": third})


def _folder() -> Path:
    folder = Path(tempfile.gettempdir()) / f"prunetune-{os.getuid()}" / "bench-methods"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _sparse_weights(upstream: str) -> Path:
    return _folder() / f"{upstream}.safetensors"


def _make_sparse(upstream: str) -> None:
    """Trains the backbone on with a method that makes it sparse, on the task it knows."""
    path = _sparse_weights(upstream)
    if path.exists():
        return
    (arm,) = (arm for arm in ARMS if arm.method == upstream and arm.trainable_depth == 1.0)
    run = Run(
        arm=arm,
        task=SOURCE_TASK,
        level=UPSTREAM_FLOPS,
        learning_rate=0.01,
        seed=CHOOSING_SEED,
        split="validation",
    )
    trial = _trial(run)
    trial.advance()
    weights: Mapping[str, Tensor] = trial.measured_model.state_dict()
    safetensors.torch.save_file({n: v.contiguous() for n, v in weights.items()}, path)


def _result(
    runs: Sequence[Run],
    results: Sequence[Measurement | None],
    rates: Mapping[tuple[Arm, str], float],
) -> dict[str, Any]:
    measured = dict(zip(runs, results, strict=True))
    return {
        "what": f"cifar_resnet20 (CIFAR-10) on {', '.join(TASKS)} at {RESOLUTION} px, SGD, batch "
        f"{BATCH}, {len(SEEDS)} seeds; test error in %, mean of the tasks and deviation over seeds",
        "levels": list(LEVELS),
        "methods": [_row(arm, measured) for arm in ARMS],
        "tasks": [
            _task_row(arm, task, rates[arm, task], measured) for arm in ARMS for task in TASKS
        ],
    }


def _row(arm: Arm, measured: Mapping[Run, Measurement | None]) -> dict[str, Any]:
    row: dict[str, Any] = {"method": arm.name}
    for level in LEVELS:
        found = [
            (run.seed, m) for run, m in measured.items() if (run.arm, run.level) == (arm, level)
        ]
        row[f"error at {level:.2g}"] = _spread(found)
    last = [m for run, m in measured.items() if run.arm == arm and run.level == LEVELS[-1] and m]
    if last:
        row["train FLOPs"] = f"{statistics.mean(m.train_flops for m in last):.3g}"
        row["if zeros were skipped"] = f"{_mean(m.sparse_train_flops for m in last):.3g}"
        row["inference FLOPs"] = f"{statistics.mean(m.inference_flops for m in last):.3g}"
        row["zeros skipped"] = f"{_mean(m.sparse_inference_flops for m in last):.3g}"
        row["updated"] = f"{statistics.mean(m.updated_params / m.params for m in last):.1%}"
        row["images"] = round(statistics.mean(m.images_seen for m in last))
    return row


def _mean(values: Iterable[float | None]) -> float:
    return statistics.mean(value for value in values if value is not None)


def _spread(found: Sequence[tuple[int, Measurement | None]]) -> str:
    """Mean over tasks and seeds, and the deviation over seeds of the mean over tasks."""
    if not found or any(m is None for _, m in found):
        return "-"
    by_seed = [
        statistics.mean(100 * m.val_error for seed, m in found if seed == wanted and m)
        for wanted in SEEDS
    ]
    return f"{statistics.mean(by_seed):.1f} ± {statistics.stdev(by_seed):.1f}"


def _task_row(
    arm: Arm, task: str, rate: float, measured: Mapping[Run, Measurement | None]
) -> dict[str, Any]:
    row: dict[str, Any] = {"method": arm.name, "task": task, "learning rate": rate}
    for level in LEVELS:
        errors = [
            100 * m.val_error
            for run, m in measured.items()
            if (run.arm, run.task, run.level) == (arm, task, level) and m
        ]
        complete = len(errors) == len(SEEDS)
        spread = (
            f"{statistics.mean(errors):.1f} ± {statistics.stdev(errors):.1f}" if complete else "-"
        )
        row[f"error at {level:.2g}"] = spread
    return row
