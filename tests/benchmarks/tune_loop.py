"""The driver's time a trial in the real loop of Ray Tune, from the 100th trial to the 2,000th.

Made-up trials report at once, so that the loop has nothing to wait for: what a trial takes is
Tune's and the driver's own time. It is told as this process's time and as time on the wall.
"""

import tempfile
import time
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import ray
from ray import tune

from orchestrator.cluster.config import ResourcesConfig
from orchestrator.cluster.resources import connect
from orchestrator.cluster.session import run_trials
from orchestrator.search.config import Budget, SearchConfig
from search_spaces.recipe import Recipe
from tests.benchmarks.publish import publish
from tests.benchmarks.scale import PROBLEM
from tests.orchestrator.made_up_sweep import MadeUpSweep
from tests.orchestrator.made_up_trials import STABLE_SHARE, MadeUpTrial
from trainables.backbones.source import BackboneSource
from trainables.images.tasks import TaskSource
from trainables.trial_setting import TrialSetting

MARKS = (100, 300, 500, 1000, 1500, 2000)
"""Finished trials between which the time is told."""
BUDGET = Budget(trials=2500)
"""So large that no mark lies in the sweep's end, in which the best are raised alone."""
SETTING = TrialSetting(
    backbone=BackboneSource(model="made-up"),
    task=TaskSource(source="made-up"),
    store_resolution=32,
    source_task=None,
    source_resolution=32,
    mirror=False,
    levels=PROBLEM.rungs,
    cache="",
    trials_uri="",
    threads=1,
)


class _Reading(NamedTuple):
    """The clocks when so many trials had finished."""

    trials: int
    process_seconds: float
    seconds: float


class InstantTrial(tune.Trainable):
    """Reports what a made-up trial of its recipe measures, a rung a step."""

    def setup(self, config: dict[str, Any]) -> None:
        recipe, levels = Recipe.from_dict(config["recipe"]), config["setting"]["levels"]
        below = [level for level in levels if level < recipe.target_flops]
        goes_on = config["continues"] is not None and below
        self._reports = MadeUpTrial(
            recipe=recipe,
            seed=config["seed"],
            levels=levels,
            begins_at=STABLE_SHARE * below[-1] if goes_on else 0.0,
        ).reports()

    def step(self) -> dict[str, Any]:
        return {"report": next(self._reports).to_json()}

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self.setup(new_config)
        return True

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Nothing is kept."""

    def load_checkpoint(self, checkpoint: Any) -> None:
        """Nothing was kept."""


def main() -> None:
    """Runs the sweep and prints the table."""
    connect(None)
    try:
        with tempfile.TemporaryDirectory() as folder:
            rows = _rows(Path(folder))
    finally:
        ray.shutdown()
    result = {"rungs": len(PROBLEM.rungs), "sampler": "model", "scheduler": "race", "marks": rows}
    publish("tune_loop", title="The driver's time in Tune's loop", result=result)


def _rows(folder: Path) -> list[dict[str, Any]]:
    search = SearchConfig(sampler="model", scheduler="race")
    sweep = MadeUpSweep(folder, {}, search, PROBLEM)
    sweep.begin(budget=BUDGET)
    readings: list[_Reading] = []

    def look() -> None:
        trials = len(sweep.ledger.finished_since(0))
        if len(readings) < len(MARKS) and trials >= MARKS[len(readings)]:
            readings.append(_Reading(trials, time.process_time(), time.monotonic()))

    run_trials(
        sweep.driver,
        SETTING,
        ResourcesConfig(),
        folder=folder / "tune",
        gpus=lambda recipe: 0.0,
        on_step=look,
        trainable=InstantTrial,
    )
    return [_row(one, other, first=readings[:2]) for one, other in pairwise(readings)]


def _row(one: _Reading, other: _Reading, *, first: Sequence[_Reading]) -> dict[str, Any]:
    """Tells the time a trial between two readings, and its ratio to that between the first two."""
    own, wall = _milliseconds(one, other)
    first_own, first_wall = _milliseconds(*first)
    return {
        "trials": f"{one.trials}-{other.trials}",
        "milliseconds_a_trial": round(own, 1),
        "ratio": round(own / first_own, 2),
        "wall_milliseconds_a_trial": round(wall, 1),
        "wall_ratio": round(wall / first_wall, 2),
    }


def _milliseconds(one: _Reading, other: _Reading) -> tuple[float, float]:
    """The process's time and the wall's for a trial between two readings."""
    trials = other.trials - one.trials
    own, wall = other.process_seconds - one.process_seconds, other.seconds - one.seconds
    return 1e3 * own / trials, 1e3 * wall / trials


if __name__ == "__main__":
    main()
