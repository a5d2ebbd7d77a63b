"""Whole sweeps with real training, compared by the test accuracy that they end with.

    make bench-live                                           # what is missing, then the tables
    make bench-live WITH="--tasks gtsrb --seeds 0 --arms joint full"

Every sweep of a task gets the same training FLOPs: `joint` and `full` are this search over all
methods and over full finetuning alone; `before` is the product as it stood at 28927da over all
methods, in a checkout of its own; `optuna` is Optuna's TPE with successive halving over all
methods, as its documentation shows: every trial aims at the top rung, reports its error at each,
and is pruned there. All train two trials at a time, one core each. The portfolio that a sweep may
start with is made without its task.

The points of a frontier are chosen on 500 validation images and scored on the test images. Sweeps
lie in `runs/live`, and one that is whole is not run again.
"""

import argparse
import json
import multiprocessing
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import torch
import yaml
from matplotlib.figure import Figure
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

from orchestrator.config import SweepConfig, validate
from orchestrator.inputs import SweepInputs
from orchestrator.search import portfolio
from search_spaces.ranges import RangedTrial
from search_spaces.recipe import Recipe
from tests.benchmarks.publish import publish
from tests.benchmarks.search.portfolio import portfolio_without
from tests.checkout import ROOT, SHARED
from trainables.backbones.build import normalisation
from trainables.errors import InfeasibleError
from trainables.finetune import Finetuning
from trainables.images.augment import model_inputs
from trainables.learning.evaluation import evaluate
from trainables.measurement import Outcome
from trainables.rungs import rung_levels
from trainables.seeds import derive_seed

RUNS = ROOT / "runs" / "live"
BEFORE = "28927da"
"""The commit that `before` is."""
PROCESSES = 2
VALIDATION_IMAGES = 500
ARMS = ("joint", "full", "before", "optuna")
SEEDS = (0, 1, 2)
FIGURE = ROOT / "analysis" / "images" / "live-frontiers.png"
_DRAWN = {
    "joint": ("prunetune", "tab:blue"),
    "optuna": ("Optuna, TPE + successive halving", "tab:orange"),
    "before": ("prunetune before the race", "tab:grey"),
}
"""Labels and colours of the arms in the figure."""

_Point = tuple[int, float, float]
"""Rung, validation error and test error."""


@dataclass(frozen=True, kw_only=True)
class Task:
    """A task, a backbone, a grid of compute and a budget."""

    name: str
    """A folder of the data that lies beside the checkout."""
    resolution: int
    min_flops: float
    """Training FLOPs of the lowest rung; the highest has a hundred times as many."""
    model: str = "cifar_resnet:cifar_resnet"
    weights: str = "cifar_resnet20.safetensors"
    mirror: bool = False

    @property
    def levels(self) -> tuple[float, ...]:
        """Training FLOPs of the rungs."""
        return rung_levels(min_flops=self.min_flops, max_flops=100 * self.min_flops, per_decade=3)

    @property
    def sweep_flops(self) -> float:
        """Training FLOPs of a sweep: three trials at the top."""
        return 300 * self.min_flops

    def config(self, arm: str, seed: int) -> dict[str, Any]:
        """Returns the config of a sweep."""
        folder = "" if arm == "before" else "backbones."
        args = {"depth": 20} if "resnet" in self.model else {}
        config: dict[str, Any] = {
            "name": f"{self.name}-{arm}-{seed}",
            "seed": seed,
            "task": {
                "source": str(SHARED / "data" / self.name),
                "resolution": self.resolution,
                "mirror": self.mirror,
                "max_validation_images": VALIDATION_IMAGES,
            },
            "backbone": {
                "model": f"tests.trainables.{folder}{self.model}" if args else self.model,
                "args": args,
                "weights": str(SHARED / "weights" / self.weights),
            },
            "space": {"function": "joint"},
            "rungs": {
                "min_flops": self.min_flops,
                "max_flops": 100 * self.min_flops,
                "per_decade": 3,
            },
            "budget": {"sweep_flops": self.sweep_flops},
        }
        if arm == "full":
            config["space"]["ranges"] = {"method": "full"}
        return config


TASKS = (
    Task(name="kmnist10k", resolution=32, min_flops=1e10),
    Task(name="gtsrb", resolution=24, min_flops=3e9),
    Task(name="fashion_mnist", resolution=24, min_flops=3e9, mirror=True),
    Task(name="omniglot_small1", resolution=24, min_flops=3e9),
    Task(
        name="deeppcb_defects",
        resolution=48,
        min_flops=5e9,
        model="mobilenetv2_100",
        weights="mobilenetv2_100_imagenet_qat.safetensors",
        mirror=True,
    ),
)


def main() -> None:
    """Runs the sweeps that are missing, one after another, and prints the tables."""
    arguments = _arguments()
    tasks = [task for task in TASKS if task.name in arguments.tasks]
    for seed in () if arguments.show else arguments.seeds:
        for task in tasks:
            for arm in arguments.arms:
                _run(task, arm, seed)
    _publish(tasks)


def _run(task: Task, arm: str, seed: int) -> None:
    """Runs one sweep, unless its result is there, and keeps its result."""
    path = _result_path(task, arm, seed)
    if path.exists():
        return
    started = time.perf_counter()
    search = _optuna if arm == "optuna" else _sweep
    points, sweep_flops, trials = search(task, arm, seed)
    result = {
        "test_errors": _best_errors(points, rungs=len(task.levels)),
        "sweep_flops": sweep_flops,
        "trials": trials,
        "seconds": round(time.perf_counter() - started, 1),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=1) + "\n")
    print(time.strftime("%H:%M"), path.stem, result, flush=True)


def _result_path(task: Task, arm: str, seed: int) -> Path:
    return RUNS / "results" / f"{task.name}-{arm}-{seed}.json"


def _best_errors(points: Iterable[_Point], *, rungs: int) -> list[float]:
    """The test error, at each rung, of the best that was measured up to it; 1 where nothing was."""
    best = [(1.0, 1.0)] * rungs
    for rung, val_error, test_error in points:
        for reached in range(rung, rungs):
            best[reached] = min(best[reached], (val_error, test_error))
    return [test_error for _, test_error in best]


# sweeps of the product


def _sweep(task: Task, arm: str, seed: int) -> tuple[list[_Point], float, int]:
    """Runs the product's command; returns its frontier, its training FLOPs and its trials."""
    checkout = _checkout_before() if arm == "before" else ROOT
    RUNS.mkdir(parents=True, exist_ok=True)
    folder = RUNS / f"{task.name}-{arm}-{seed}"
    config = task.config(arm, seed) | {"storage": {"folder": str(folder)}}
    if arm != "before":
        known = RUNS / f"without-{task.name}.json"
        portfolio.write(known, portfolio_without([task.name]))
        config["search"] = {"portfolio": str(known)}
    path = RUNS / f"{task.name}-{arm}-{seed}.yaml"
    path.write_text(yaml.safe_dump(config))
    _prunetune(checkout, "sweep", str(path))
    shown = _prunetune(checkout, "frontier", str(folder), "--json")
    points = [(p["rung"], p["val_error"], p["test_error"]) for p in json.loads(shown)]
    events = [json.loads(line) for line in _journal(folder)]
    flops = sum(e["measurement"]["executed_flops"] for e in events if e["event"] == "measured")
    flops += sum(e["unmeasured_flops"] for e in events if e["event"] == "finished")
    return points, flops, sum(e["event"] == "suggested" for e in events)


def _journal(folder: Path) -> Iterator[str]:
    for segment in sorted((folder / "journal").iterdir()):
        yield from segment.read_text().splitlines()


def _prunetune(checkout: Path, *arguments: str) -> str:
    """Runs a command of the checkout; returns what it printed."""
    command = [sys.executable, "-m", "orchestrator", *arguments]
    environment = {**os.environ, "PYTHONPATH": str(checkout)}
    done = subprocess.run(
        command, cwd=checkout, env=environment, stdout=subprocess.PIPE, text=True, check=True
    )
    return done.stdout


def _checkout_before() -> Path:
    checkout = RUNS / f"checkout-{BEFORE}"
    if not checkout.exists():
        git = ["git", "worktree", "add", "--detach", str(checkout), BEFORE]
        subprocess.run(git, cwd=ROOT, check=True)
    return checkout


# Optuna as its documentation shows it


def _optuna(task: Task, arm: str, seed: int) -> tuple[list[_Point], float, int]:
    """Searches with TPE and successive halving in two processes over one study."""
    journal = RUNS / f"{task.name}-{arm}-{seed}.journal"
    journal.parent.mkdir(parents=True, exist_ok=True)
    journal.unlink(missing_ok=True)
    study = _study(journal, seed)
    context = multiprocessing.get_context("spawn")
    workers = [
        context.Process(target=_work, args=(task, seed, part, journal)) for part in range(PROCESSES)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
        assert worker.exitcode == 0
    trials = study.trials
    points = [tuple(point) for t in trials for point in t.user_attrs.get("points", [])]
    return points, sum(t.user_attrs.get("flops", 0.0) for t in trials), len(trials)


def _study(journal: Path, seed: int) -> optuna.Study:
    return optuna.create_study(
        study_name="study",
        storage=JournalStorage(JournalFileBackend(str(journal))),
        sampler=optuna.samplers.TPESampler(seed=seed),
        pruner=optuna.pruners.SuccessiveHalvingPruner(),
        load_if_exists=True,
    )


def _work(task: Task, seed: int, part: int, journal: Path) -> None:
    """Runs trials until the study has spent its FLOPs."""
    torch.set_num_threads(1)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    objective = _Objective(task, seed)
    study = _study(journal, seed * PROCESSES + part)
    while sum(trial.user_attrs.get("flops", 0.0) for trial in study.trials) < task.sweep_flops:
        study.optimize(objective, n_trials=1)


class _Objective:
    """Trains a recipe towards the top rung; its value is the validation error at the end."""

    def __init__(self, task: Task, seed: int) -> None:
        self._inputs = SweepInputs(
            validate(SweepConfig, task.config("joint", seed), what="The live benchmark")
        )
        self._task, self._seed = task, seed
        self._best = [1.0] * len(task.levels)

    def __call__(self, trial: optuna.Trial) -> float:
        top = len(self._task.levels) - 1
        recipe = self._inputs.space(RangedTrial(trial, {"target_rung": top}), self._inputs.problem)
        trial.set_user_attr("flops", 0.0)
        try:
            running = Finetuning(
                recipe=recipe,
                seed=derive_seed(self._seed, "trial", trial.number),
                backbone=self._inputs.backbone,
                store=self._inputs.store,
                levels=self._task.levels,
                mirror=self._task.mirror,
                device=torch.device("cpu"),
            )
        except InfeasibleError as error:
            trial.set_user_attr("flops", error.spent_flops)
            raise optuna.TrialPruned from error
        return self._trained(trial, running, recipe)

    def _trained(self, trial: optuna.Trial, running: Finetuning, recipe: Recipe) -> float:
        points: list[_Point] = []
        while True:
            running.advance()
            measured = running.measurement
            spent = running.unbilled_flops + (measured.train_flops if measured else 0.0)
            trial.set_user_attr("flops", spent)
            if running.outcome is Outcome.DIVERGED or measured is None:
                raise optuna.TrialPruned
            if measured.val_error < min(self._best[: measured.rung + 1]):
                self._best[measured.rung] = measured.val_error
                points.append(
                    (measured.rung, measured.val_error, self._test_error(running, recipe))
                )
                trial.set_user_attr("points", points)
            if running.outcome is Outcome.COMPLETE:
                return measured.val_error
            trial.report(measured.val_error, step=measured.rung)
            if trial.should_prune():
                raise optuna.TrialPruned

    def _test_error(self, running: Finetuning, recipe: Recipe) -> float:
        mean, std = normalisation(self._inputs.backbone.source, running.model)
        inputs = partial(model_inputs, resolution=recipe.resolution, mean=mean, std=std)
        error, _ = evaluate(running.measured_model, self._inputs.store.splits["test"], inputs)
        return error


# tables

_Found = Mapping[tuple[str, str, int], Mapping[str, Any]]
"""Results by task, arm and seed."""


def _publish(tasks: Sequence[Task]) -> None:
    found = {
        (task.name, arm, seed): json.loads(path.read_text())
        for task in tasks
        for arm in ARMS
        for seed in SEEDS
        if (path := _result_path(task, arm, seed)).exists()
    }
    rows = [_row(found, task.name, arm) for task in tasks for arm in ARMS]
    result = {
        "what": "test accuracy in percent, mean over seeds, of the best model that each rung's "
        "compute buys; sweeps of equal training FLOPs, three trials at the top rung",
        "sweeps": [row for row in rows if row],
        "seeds_apart": [line for task in tasks for line in _spreads(found, task.name)],
    }
    publish("live", title="Whole sweeps with real training", result=result)
    _draw(found, [task for task in tasks if (task.name, "optuna", 0) in found])


def _row(found: _Found, task: str, arm: str) -> dict[str, Any]:
    """The means over the seeds of one arm; nothing where none has run."""
    results = [found[task, arm, seed] for seed in SEEDS if (task, arm, seed) in found]
    if not results:
        return {}
    accuracies = 100 * (1 - np.mean([result["test_errors"] for result in results], axis=0))
    return {
        "task": task,
        "arm": arm,
        "seeds": len(results),
        **{f"rung {rung}": round(float(a), 1) for rung, a in enumerate(accuracies)},
        "minutes": round(statistics.fmean(result["seconds"] for result in results) / 60, 1),
        "trials": round(statistics.fmean(result["trials"] for result in results)),
    }


def _spreads(found: _Found, task: str) -> Iterator[dict[str, Any]]:
    """How far the seeds of each arm are apart at the top rung."""
    for arm in ARMS:
        ends = [
            round(100 * (1 - found[task, arm, seed]["test_errors"][-1]), 1)
            for seed in SEEDS
            if (task, arm, seed) in found
        ]
        if len(ends) == len(SEEDS):
            apart = round(max(ends) - min(ends), 1)
            yield {"task": task, "arm": arm, "ends": ends, "apart": apart}


def _draw(found: _Found, tasks: Sequence[Task]) -> None:
    """Draws the frontiers of the tasks that all arms have run."""
    if not tasks:
        return
    figure = Figure(figsize=(4 * len(tasks), 3.4), layout="constrained")
    for task, axes in zip(tasks, figure.subplots(1, len(tasks), squeeze=False)[0], strict=True):
        for arm, (label, colour) in _DRAWN.items():
            curves = [
                100 * (1 - np.asarray(found[task.name, arm, seed]["test_errors"]))
                for seed in SEEDS
                if (task.name, arm, seed) in found
            ]
            if curves:
                axes.plot(task.levels, np.mean(curves, axis=0), label=label, color=colour)
                lowest, highest = np.min(curves, axis=0), np.max(curves, axis=0)
                axes.fill_between(task.levels, lowest, highest, color=colour, alpha=0.2, lw=0)
        axes.set(xscale="log", xlabel="training FLOPs of one model", title=task.name)
    figure.axes[0].set_ylabel("test accuracy, %")
    figure.axes[-1].legend(loc="lower right", fontsize="small")
    figure.savefig(FIGURE, dpi=150)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Compares searches by whole sweeps.")
    names = [task.name for task in TASKS]
    parser.add_argument("--tasks", nargs="+", default=names, choices=names)
    parser.add_argument("--arms", nargs="+", default=ARMS, choices=ARMS)
    parser.add_argument("--seeds", nargs="+", type=int, default=SEEDS)
    parser.add_argument("--show", action="store_true", help="run nothing, print what there is")
    return parser.parse_args()


if __name__ == "__main__":
    main()
