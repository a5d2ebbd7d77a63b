"""The cost of a sweep besides its trials.

The same trials run twice in one go: by a sweep (Ray, Tune, Optuna, MLflow, journal, checkpoints,
tables, report), and in a bare loop without any of them, one process a slot. Each trial computes
for about ten seconds on one core."""

import json
import multiprocessing
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from orchestrator.config import SweepConfig, validate
from orchestrator.sweep import Sweep
from search_spaces.recipe import Recipe
from tests.benchmarks.publish import publish
from trainables.backbones.build import Backbone
from trainables.backbones.source import BackboneSource
from trainables.finetune import Finetuning
from trainables.images.store import ImageStore, open_store
from trainables.images.tasks import TaskSource

TRIALS = 60
TRIAL_SECONDS = 10.0
SLOTS = os.cpu_count() or 1

RECIPE: dict[str, Any] = {
    "learning_rate": 0.02,
    "weight_decay": 1e-4,
    "batch_size": 32,
    "label_smoothing": 0.1,
    "layer_decay": 0.9,
    "trainable_depth": 1.0,
    "resolution": 32,
    "augmentation": 0.3,
}
SETTINGS: dict[str, Any] = {
    "pruning_ratio": 0.5,
    "criterion": "l1",
    "width_rule": "inner",
    "scope": "layer",
    "batch_norm_repair": True,
    "ridge_repair": False,
}
TASK = {"source": "digits", "resolution": 32, "mirror": False}
MODEL = "resnet10t"


def main() -> None:
    """Runs both and prints the table."""
    flops = _calibrated_flops()
    with tempfile.TemporaryDirectory() as folder:
        loop_seconds = _bare_loop(Path(folder) / "loop", flops)
        sweep_seconds, gaps, trial_seconds = _sweep(Path(folder) / "sweep", flops)
    result = {
        "what": f"{TRIALS} trials of {MODEL} on digits, {SLOTS} side by side, one run each",
        "median_trial_seconds": round(statistics.median(trial_seconds), 2),
        "bare_loop_seconds": round(loop_seconds, 1),
        "sweep_seconds": round(sweep_seconds, 1),
        "overhead": round(sweep_seconds / loop_seconds - 1, 4),
        "median_hand_over_seconds": round(statistics.median(gaps), 3),
        "largest_hand_over_seconds": round(max(gaps), 3),
    }
    publish("overhead", title="The cost of a sweep besides its trials", result=result)


def _bare_loop(folder: Path, flops: float) -> float:
    """Wall seconds of the trials in plain processes, from the start of the first to the last."""
    context = multiprocessing.get_context("spawn")
    shares = [TRIALS // SLOTS + (slot < TRIALS % SLOTS) for slot in range(SLOTS)]
    started = time.perf_counter()
    workers = [
        context.Process(target=_run_trials, args=(folder / str(slot), flops, share))
        for slot, share in enumerate(shares)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    if any(worker.exitcode for worker in workers):
        raise SystemExit("a trial of the bare loop failed")
    return time.perf_counter() - started


def _run_trials(folder: Path, flops: float, count: int) -> None:
    torch.set_num_threads(1)
    store, backbone = _store(), _backbone()
    for number in range(count):
        trial = _trial(store, backbone, flops)
        trial.advance()
        trial.save((folder / str(number)).absolute().as_uri())


def _sweep(folder: Path, flops: float) -> tuple[float, list[float], list[float]]:
    """Wall seconds of the whole sweep, its hand-overs, and how long its trials took."""
    config = validate(
        SweepConfig,
        {
            "name": "overhead",
            "task": TASK,
            "backbone": {"model": MODEL},
            "budget": {"trials": TRIALS},
            "rungs": {"min_flops": flops, "max_flops": flops},
            "search": {"reduction_factor": None},
            "space": {"ranges": {**RECIPE, **SETTINGS, "target_rung": 0}},
            "resources": {"concurrent": SLOTS},
            "storage": {"folder": str(folder)},
        },
        what="the benchmark",
    )
    started = time.perf_counter()
    Sweep(config, console=Console()).run()
    seconds = time.perf_counter() - started
    lines = sorted((folder / "journal").glob("segment-*"))[0].read_text().splitlines()
    reports = [event for event in map(json.loads, lines) if event["event"] == "measured"]
    return seconds, _hand_overs(reports), [r["reported_at"] - r["set_up_at"] for r in reports]


def _hand_overs(reports: list[dict[str, Any]]) -> list[float]:
    """Seconds from a trial's last report to the next trial's set-up, slot by slot.

    With S slots, the set-up that follows a report is the earliest later one that no earlier
    report has claimed.
    """
    set_ups = sorted(report["set_up_at"] for report in reports)[SLOTS:]
    ends = sorted(report["reported_at"] for report in reports)[: len(set_ups)]
    return [begin - end for end, begin in zip(ends, set_ups, strict=True)]


def _calibrated_flops() -> float:
    """Training FLOPs that take about `TRIAL_SECONDS` while every slot is busy."""
    torch.set_num_threads(1)
    store, backbone = _store(), _backbone()
    probe = _trial(store, backbone, 2e10)
    started = time.perf_counter()
    probe.advance()
    return 2e10 * TRIAL_SECONDS / (time.perf_counter() - started)


def _trial(store: ImageStore, backbone: Backbone, flops: float) -> Finetuning:
    return Finetuning(
        recipe=Recipe(method="filter_pruning", settings=SETTINGS, target_flops=flops, **RECIPE),
        seed=0,
        backbone=backbone,
        store=store,
        levels=(flops,),
        mirror=False,
        device=torch.device("cpu"),
    )


def _backbone() -> Backbone:
    return Backbone(source=BackboneSource(model=MODEL), weights=None)


def _store() -> ImageStore:
    cache = Path(tempfile.gettempdir()) / f"prunetune-{os.getuid()}" / "images"
    return open_store(TaskSource(source="digits"), resolution=32, cache_dir=cache)
