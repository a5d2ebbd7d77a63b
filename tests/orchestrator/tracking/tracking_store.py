"""A small sweep to show, and ways to look at the MLflow that shows it."""

import sqlite3
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from mlflow import MlflowClient

from analysis.frontier import Frontier, FrontierPoint
from orchestrator.store.ledger import TrialRecord, TrialState
from orchestrator.tracking.tracker import Snapshot, Tracker
from search_spaces.recipe import Recipe
from trainables.measurement import Measurement

LOADER = """
from pathlib import Path
import numpy as np

class Constant:
    def __init__(self, value):
        self.value = value

    def predict(self, images):
        return np.full((len(images), 2), self.value, dtype=np.float32)

def _load_pyfunc(path):
    return Constant(float(Path(path, "value.txt").read_text()))
"""


def recipe(**changes: Any) -> Recipe:
    values: dict[str, Any] = {
        "method": "filter_pruning",
        "settings": {"ratio": 0.5, "criterion": "l1"},
        "learning_rate": 0.01,
        "weight_decay": 1e-4,
        "batch_size": 64,
        "label_smoothing": 0.1,
        "layer_decay": 1.0,
        "trainable_depth": 1.0,
        "resolution": 32,
        "augmentation": 0.0,
        "target_flops": 1e13,
    }
    return Recipe(**(values | changes))


def measurement(rung: int, *, val_error: float, **changes: Any) -> Measurement:
    values: dict[str, Any] = {
        "rung": rung,
        "train_flops": 1e11 * 2.0**rung,
        "executed_flops": 1e11,
        "eval_flops": 1e10,
        "inference_flops": 1e8,
        "params": 1000,
        "updated_params": 900,
        "val_error": val_error,
        "val_loss": 1.25,
        "train_seconds": 10.0 * (rung + 1),
        "images_seen": 640 * (rung + 1),
    }
    return Measurement(**(values | changes))


def trial(number: int, *, errors: tuple[float, ...] = (), **changes: Any) -> TrialRecord:
    """A trial with one measurement a rung."""
    values: dict[str, Any] = {
        "trial_id": f"{number:05d}-{recipe().recipe_id}",
        "number": number,
        "recipe": recipe(),
        "seed": 100 + number,
        "measurements": tuple(measurement(r, val_error=e) for r, e in enumerate(errors)),
        "suggested_at": 1_700_000_000.0 + number,
    }
    return TrialRecord(**(values | changes))


def finished(record: TrialRecord, state: TrialState, reason: str | None = None) -> TrialRecord:
    return replace(record, state=state, reason=reason, finished_at=record.suggested_at + 100)


def frontier_of(trials: tuple[TrialRecord, ...]) -> Frontier:
    return Frontier().merge(
        FrontierPoint(
            trial_id=t.trial_id,
            number=t.number,
            measurement=m,
            recipe=t.recipe.flat(),
        )
        for t in trials
        for m in t.measurements
    )


def snapshot(sweep_id: str, *trials: TrialRecord, **changes: Any) -> Snapshot:
    values: dict[str, Any] = {
        "sweep_id": sweep_id,
        "name": f"sweep {sweep_id}",
        "config": {"seed": 1, "search": {"trials": 8, "spaces": ["joint"], "budget": None}},
        "trials": trials,
        "frontier": frontier_of(trials),
        "sweep_flops": 1e12 * len(trials),
        "hypervolume": 0.5,
        "elapsed_seconds": 60.0,
        "finished": False,
    }
    return Snapshot(**(values | changes))


@dataclass
class Store:
    """An experiment of its own in the module's SQLite file, and ways to look at it."""

    path: Path
    experiment: str
    artifacts: Path
    client: MlflowClient = field(init=False)

    def __post_init__(self) -> None:
        self.client = MlflowClient(tracking_uri=self.uri)

    @property
    def uri(self) -> str:
        return f"sqlite:///{self.path}"

    def tracker(self, **changes: Any) -> Tracker:
        values: dict[str, Any] = {
            "uri": self.uri,
            "experiment": self.experiment,
            "artifact_location": str(self.artifacts),
            "loader_module": "constant_model",
            "interval_seconds": 0.02,
        }
        return Tracker(**(values | changes))

    @property
    def experiment_id(self) -> str:
        experiment_id: str = self.client.get_experiment_by_name(self.experiment).experiment_id
        return experiment_id

    def runs(self, filter_string: str) -> list[Any]:
        return list(self.client.search_runs([self.experiment_id], filter_string))

    def sweep(self) -> Any:
        (run,) = self.runs("tags.`prunetune.kind` = 'sweep'")
        return run

    def trial(self, record: TrialRecord) -> Any:
        (run,) = self.runs(f"tags.`prunetune.trial_id` = '{record.trial_id}'")
        return run

    def frontier(self, condition: str = "") -> list[Any]:
        """The query that the design promises, and a user's condition on top of it."""
        return list(
            self.client.search_logged_models(
                [self.experiment_id],
                filter_string=f"tags.frontier = 'true'{condition}",
                order_by=[{"field_name": "metrics.train_flops", "ascending": True}],
            )
        )

    def points(self) -> list[tuple[str, int]]:
        return [
            (m.tags["prunetune.trial_id"], int(m.tags["prunetune.rung"])) for m in self.frontier()
        ]

    def rows(self) -> dict[str, int]:
        tables = (
            "runs", "params", "tags", "metrics", "logged_models",
            "logged_model_metrics", "logged_model_params", "logged_model_tags",
        )  # fmt: skip
        with sqlite3.connect(self.path) as database:
            counts = {
                t: database.execute(f"select count(*) from {t}").fetchone()[0] for t in tables
            }
        database.close()
        return counts


def points_of(shown: Snapshot) -> list[tuple[str, int]]:
    return [(p.trial_id, p.rung) for p in shown.frontier.points]


def sweep_in_full(sweep_id: str) -> Snapshot:
    return snapshot(
        sweep_id,
        finished(trial(0, errors=(0.5, 0.4)), TrialState.COMPLETE),
        finished(trial(1, errors=(0.6, 0.3)), TrialState.HALVED),
        trial(2, errors=(0.7,)),
    )
