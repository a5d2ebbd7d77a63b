"""The tracker against real MLflow: SQLite for what is shown, a server process for outages."""

import json
import os
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mlflow import MlflowClient, pyfunc
from mlflow.artifacts import download_artifacts, load_dict
from mlflow.entities import LoggedModelStatus, Metric
from sqlalchemy import event
from sqlalchemy.engine import Engine

from analysis.frontier import Frontier, FrontierPoint
from orchestrator import tracking_mirror
from orchestrator.ledger import TrialRecord, TrialState
from orchestrator.tracking import Snapshot, Tracker
from orchestrator.tracking_views import MAX_TEXT_LENGTH, STATUSES
from search_spaces.recipe import Recipe
from trainables.errors import InputError
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


# ---------------------------------------------------------------------------------- a small sweep


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
            rung=m.rung,
            train_flops=m.train_flops,
            val_error=m.val_error,
            test_error=m.test_error,
            inference_flops=m.inference_flops,
            params=m.params,
            updated_params=m.updated_params,
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


# --------------------------------------------------------------------------------- a small MLflow


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


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A migrated SQLite file; making it takes MLflow seconds."""
    path = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    MlflowClient(tracking_uri=f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture
def store(database: Path, tmp_path: Path, request: pytest.FixtureRequest) -> Store:
    return Store(path=database, experiment=request.node.name, artifacts=tmp_path / "artifacts")


@pytest.fixture
def statements() -> Iterator[list[str]]:
    """Every SQL statement sent since the fixture was made."""
    sent: list[str] = []

    def note(_c: object, _cursor: object, statement: str, *_rest: object) -> None:
        sent.append(statement)

    event.listen(Engine, "before_cursor_execute", note)
    yield sent
    event.remove(Engine, "before_cursor_execute", note)


def points_of(shown: Snapshot) -> list[tuple[str, int]]:
    return [(p.trial_id, p.rung) for p in shown.frontier.points]


# ------------------------------------------------------------------------------- what MLflow shows


def test_a_sweep_is_a_parent_run_with_its_config_and_totals(store: Store) -> None:
    trials = (trial(0, errors=(0.5,)), finished(trial(1, errors=(0.6,)), TrialState.HALVED))
    store.tracker().sync(snapshot("s", *trials))

    run = store.sweep()
    assert run.info.status == "RUNNING"
    assert run.info.run_name == "sweep s"
    assert run.data.params == {
        "seed": "1",
        "search.trials": "8",
        "search.spaces": '["joint"]',
        "search.budget": "null",
    }
    assert run.data.metrics == {
        "sweep_flops": 2e12,
        "hypervolume": 0.5,
        "frontier_points": 1,
        "trials_running": 1,
        "trials_halved": 1,
        "trials_complete": 0,
        "trials_diverged": 0,
        "trials_failed": 0,
        "trials_infeasible": 0,
    }
    config = load_dict(f"{run.info.artifact_uri}/config.json")
    assert config == {"seed": 1, "search": {"trials": 8, "spaces": ["joint"], "budget": None}}


def test_a_trial_is_a_nested_run_with_its_recipe_and_curve(store: Store) -> None:
    record = trial(3, errors=(0.5, 0.4), attempt=2)
    store.tracker().sync(snapshot("s", record))

    run = store.trial(record)
    assert run.data.tags["mlflow.parentRunId"] == store.sweep().info.run_id
    assert run.data.tags["prunetune.attempt"] == "2"
    assert run.data.tags["prunetune.state"] == "running"
    assert run.data.tags["frontier"] == "true"
    assert run.data.params["method"] == "filter_pruning"
    assert run.data.params["ratio"] == "0.5"
    assert run.data.params["seed"] == "103"
    assert run.info.start_time == 1_700_000_003_000
    curve = store.client.get_metric_history(run.info.run_id, "val_error")
    assert [(m.step, m.value) for m in curve] == [(0, 0.5), (1, 0.4)]
    assert [m.timestamp - run.info.start_time for m in curve] == [10_000, 20_000]
    assert "peak_memory_bytes" not in run.data.metrics  # unknown is not 0


@pytest.mark.parametrize("state", list(TrialState))
def test_a_state_is_shown_as_status_and_tag(store: Store, state: TrialState) -> None:
    store.experiment = f"state {state}"
    tracker, record = store.tracker(), trial(0, errors=(0.5,))
    tracker.sync(snapshot("s", record))
    if state is not TrialState.RUNNING:
        record = finished(record, state, reason="layer4 is too narrow " * 100)
        tracker.sync(snapshot("s", record))

    run = store.trial(record)
    assert run.info.status == STATUSES[state]
    assert run.data.tags["prunetune.state"] == state.value
    if state is not TrialState.RUNNING:
        assert run.info.end_time == 1_700_000_100_000
        assert run.data.tags["prunetune.reason"].startswith("layer4 is too narrow")
        assert len(run.data.tags["prunetune.reason"]) == MAX_TEXT_LENGTH


def test_every_state_has_a_status() -> None:
    assert set(STATUSES) == set(TrialState)


def test_frontier_points_are_models_that_can_be_asked_for(store: Store) -> None:
    cheap, dear = trial(0, errors=(0.5, 0.45)), trial(1, errors=(0.6, 0.5, 0.04))
    shown = snapshot("s", cheap, dear)
    store.tracker().sync(shown)

    assert (
        store.points()
        == points_of(shown)
        == [
            (cheap.trial_id, 0),
            (cheap.trial_id, 1),
            (dear.trial_id, 2),
        ]
    )
    (accurate,) = store.frontier(" AND metrics.val_error < 0.05")
    assert accurate.source_run_id == store.trial(dear).info.run_id
    assert accurate.params["ratio"] == "0.5"
    assert {m.key: m.value for m in accurate.metrics}["params"] == 1000
    assert len(store.frontier(" AND metrics.train_flops <= 2e11")) == 2
    assert store.frontier(" AND metrics.params > 1000") == []


def test_a_loss_that_is_not_finite_is_left_out(store: Store) -> None:
    curve = (
        measurement(0, val_error=0.5, val_loss=float("nan")),
        measurement(1, val_error=0.9, val_loss=float("inf")),
    )
    record = finished(trial(0, measurements=curve), TrialState.DIVERGED)
    store.tracker().sync(snapshot("s", record))
    assert "val_loss" not in store.trial(record).data.metrics
    (model,) = store.frontier()
    assert "val_loss" not in {m.key for m in model.metrics}


def test_values_beyond_mlflows_limits_are_cut_and_kept_whole_in_the_config(store: Store) -> None:
    config = {f"key{i}/x": "é" * 7000 for i in range(130)}
    store.tracker().sync(snapshot("s", config=config))
    run = store.sweep()
    assert len(run.data.params) == 130
    assert run.data.params["key0_x"] == "é" * (MAX_TEXT_LENGTH - 1) + "…"
    assert load_dict(f"{run.info.artifact_uri}/config.json") == config


def test_a_curve_of_more_values_than_a_batch_takes(store: Store) -> None:
    record = trial(0, errors=tuple(0.9 - 0.001 * r for r in range(50)) * 2)
    curve = tuple(replace(m, rung=r) for r, m in enumerate(record.measurements))
    record = replace(record, measurements=curve)
    store.tracker().sync(snapshot("s", record))
    run_id = store.trial(record).info.run_id
    values = sum(len(store.client.get_metric_history(run_id, k)) for k in ("val_loss", "params"))
    assert values == 2 * 100
    assert len(record.measurements) * 11 > 1000


# --------------------------------------------------------------------------------- the difference


def test_an_unchanged_snapshot_costs_no_call(store: Store, statements: list[str]) -> None:
    tracker = store.tracker()
    records = trial(0, errors=(0.5, 0.4)), finished(trial(1, errors=(0.6,)), TrialState.COMPLETE)
    tracker.sync(snapshot("s", *records))
    statements.clear()
    tracker.sync(snapshot("s", *records, elapsed_seconds=90.0))  # only time has passed
    assert statements == []


def test_a_changed_snapshot_costs_the_difference(store: Store) -> None:
    tracker, others = store.tracker(), tuple(trial(n, errors=(0.9, 0.8)) for n in range(1, 4))
    tracker.sync(snapshot("s", trial(0, errors=(0.5,)), *others))
    before = store.rows()
    longer = snapshot("s", trial(0, errors=(0.5, 0.45)), *others, elapsed_seconds=90.0)
    tracker.sync(longer)
    added = {table: count - before[table] for table, count in store.rows().items()}
    fields = 10  # of a measurement without its rung and the unknown ones
    assert added == {
        "runs": 0,
        "params": 0,
        "tags": 0,
        "metrics": fields + 9,  # and the sweep's totals
        "logged_models": 1,
        "logged_model_metrics": fields,
        "logged_model_params": len(recipe().flat()) + 1,  # and the seed
        "logged_model_tags": 5,
    }


def test_forty_trials_take_a_few_seconds(store: Store) -> None:
    records = tuple(
        trial(n, errors=tuple(0.9 - 0.01 * n - 0.05 * r for r in range(6))) for n in range(40)
    )
    start = time.process_time()  # of this process, whatever else the machine does
    store.tracker().sync(snapshot("s", *records))
    assert time.process_time() - start < 5
    assert len(store.runs("tags.`prunetune.kind` = 'trial'")) == 40


def test_a_point_that_leaves_the_frontier_keeps_its_model_and_loses_the_tag(store: Store) -> None:
    tracker, old = store.tracker(), trial(0, errors=(0.5,))
    tracker.sync(snapshot("s", old))
    better = snapshot("s", old, trial(1, errors=(0.3,)))
    tracker.sync(better)
    assert store.points() == points_of(better) == [(better.trials[1].trial_id, 0)]
    assert len(store.client.search_logged_models([store.experiment_id])) == 2
    assert "frontier" not in store.trial(old).data.tags

    tracker.sync(snapshot("s", old))  # and may come back to the same model
    assert store.points() == [(old.trial_id, 0)]
    assert len(store.client.search_logged_models([store.experiment_id])) == 2


def test_a_test_error_measured_at_the_end_reaches_run_and_model(store: Store) -> None:
    tracker, record = store.tracker(), trial(0, errors=(0.5, 0.4))
    tracker.sync(snapshot("s", record))
    first, last = record.measurements
    record = replace(record, measurements=(replace(first, test_error=0.52), last))
    tracker.sync(snapshot("s", record))
    assert store.trial(record).data.metrics["test_error"] == 0.52
    cheapest, best = store.frontier()
    assert {m.key: m.value for m in cheapest.metrics}["test_error"] == 0.52
    assert "test_error" not in {m.key for m in best.metrics}


def test_a_test_error_measured_while_the_driver_was_away_is_not_missed(store: Store) -> None:
    first, last = trial(0, errors=(0.5, 0.4)).measurements
    last = replace(last, test_error=0.42)
    for known in ((first, last), (replace(first, test_error=0.52), last)):
        record = trial(0, measurements=known)  # no longer on the frontier
        store.tracker().sync(snapshot("s", record, frontier=Frontier()))
    history = store.client.get_metric_history(store.trial(record).info.run_id, "test_error")
    assert sorted((m.step, m.value) for m in history) == [(0, 0.52), (1, 0.42)]


@pytest.mark.parametrize("restarted", [False, True])
def test_a_rung_measured_again_shows_its_new_result(store: Store, restarted: bool) -> None:
    store.experiment = f"measured again {restarted}"
    tracker, lucky = store.tracker(), trial(0, errors=(0.5, 0.3))
    tracker.sync(snapshot("s", lucky))
    again = trial(0, errors=(0.5, 0.2))  # a lower value, at the same time by the record
    for _ in range(2):
        tracker = store.tracker() if restarted else tracker
        tracker.sync(snapshot("s", again))
    assert store.trial(again).data.metrics["val_error"] == 0.2
    assert store.frontier(" AND metrics.val_error = 0.3") == []
    assert len(store.frontier(" AND metrics.val_error = 0.2")) == 1
    before = store.rows()
    store.tracker().sync(snapshot("s", again))
    assert store.rows() == before


def test_the_frontier_is_a_table_beside_the_sweep(store: Store) -> None:
    tracker, record = store.tracker(), trial(0, errors=(0.5,))
    tracker.sync(snapshot("s", record))
    record = trial(0, errors=(0.5, 0.4))
    tracker.sync(snapshot("s", record))
    run = store.sweep()
    table = load_dict(f"{run.info.artifact_uri}/frontier.json")
    rows = [dict(zip(table["columns"], row, strict=True)) for row in table["data"]]
    assert [(row["rung"], row["val_error"]) for row in rows] == [(0, 0.5), (1, 0.4)]
    assert rows[0]["recipe.ratio"] == 0.5
    assert json.loads(run.data.tags["mlflow.loggedArtifacts"])[0]["path"] == "frontier.json"


# -------------------------------------------------------------------------------------- restarts


def sweep_in_full(sweep_id: str) -> Snapshot:
    return snapshot(
        sweep_id,
        finished(trial(0, errors=(0.5, 0.4)), TrialState.COMPLETE),
        finished(trial(1, errors=(0.6, 0.3)), TrialState.HALVED),
        trial(2, errors=(0.7,)),
    )


def test_a_new_tracker_finds_everything_and_adds_nothing(
    store: Store, statements: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracking_mirror, "_PAGE", 2)  # so that three runs are two pages
    shown = sweep_in_full("s")
    store.tracker().sync(shown)
    before = store.rows()
    statements.clear()
    store.tracker().sync(shown)
    assert store.rows() == before
    assert [s for s in statements if not s.startswith(("SELECT", "PRAGMA"))] == []
    assert store.points() == points_of(shown)


def test_two_sweeps_of_one_experiment_do_not_meet(store: Store) -> None:
    store.tracker().sync(sweep_in_full("one"))
    store.tracker().sync(snapshot("two", trial(0, errors=(0.2,))))
    before = store.rows()
    store.tracker().sync(sweep_in_full("one"))
    assert store.rows() == before


def test_zombies_end_with_the_right_status(store: Store) -> None:
    record = trial(0, errors=(0.5,))
    store.tracker().sync(snapshot("s", record))  # and the driver is killed
    record = finished(record, TrialState.FAILED, reason="lost its node")
    store.tracker().sync(snapshot("s", record, finished=True))
    assert store.trial(record).info.status == "FAILED"
    assert store.sweep().info.status == "FINISHED"


def test_a_retried_trial_runs_again_without_its_reason(store: Store) -> None:
    tracker, record = store.tracker(), trial(0, errors=(0.5,))
    tracker.sync(snapshot("s", finished(record, TrialState.FAILED, reason="lost its node")))
    tracker.sync(snapshot("s", replace(record, attempt=1)))
    run = store.trial(record)
    assert run.info.status == "RUNNING"
    assert run.data.tags["prunetune.attempt"] == "1"
    assert "prunetune.reason" not in run.data.tags


def test_a_run_whose_values_never_arrived_gets_them(store: Store) -> None:
    store.tracker().sync(snapshot("s"))
    shown = sweep_in_full("s")
    first = shown.trials[0]
    orphaned = store.client.create_run(  # killed between two calls
        store.experiment_id,
        start_time=int(first.suggested_at * 1000),
        tags={
            "prunetune.sweep_id": "s",
            "prunetune.kind": "trial",
            "prunetune.trial_id": first.trial_id,
        },
    )
    store.tracker().sync(shown)
    run = store.trial(first)
    assert run.info.run_id == orphaned.info.run_id
    assert run.info.status == "FINISHED"
    assert run.data.params["ratio"] == "0.5"
    assert run.data.metrics["val_error"] == 0.4
    assert run.data.tags["mlflow.parentRunId"] == store.sweep().info.run_id


def test_a_curve_cut_short_is_completed_without_doubles(store: Store) -> None:
    whole = trial(0, errors=(0.5, 0.4, 0.3))
    store.tracker().sync(snapshot("s", replace(whole, measurements=whole.measurements[:1])))
    run_id = store.trial(whole).info.run_id
    second = whole.measurements[1]  # part of the second rung arrived
    at = int((whole.suggested_at + second.train_seconds) * 1000)
    store.client.log_batch(run_id, metrics=[Metric("val_error", second.val_error, at, 1)])

    store.tracker().sync(snapshot("s", whole))
    for key in ("val_error", "params"):
        steps = [m.step for m in store.client.get_metric_history(run_id, key)]
        assert steps == [0, 1, 2]


def test_a_half_made_model_is_completed(store: Store) -> None:
    shown = snapshot("s", trial(0, errors=(0.5,)))
    store.tracker().sync(replace(shown, frontier=Frontier()))
    run_id = store.trial(shown.trials[0]).info.run_id
    store.client.create_logged_model(  # killed before its metrics and its tag
        store.experiment_id,
        source_run_id=run_id,
        tags={
            "prunetune.sweep_id": "s",
            "prunetune.trial_id": shown.trials[0].trial_id,
            "prunetune.rung": "0",
        },
    )
    store.tracker().sync(shown)
    (model,) = store.client.search_logged_models([store.experiment_id])
    assert model.tags["frontier"] == "true"
    assert {m.key: m.value for m in model.metrics}["val_error"] == 0.5


def test_doubles_and_orphans_are_removed(store: Store) -> None:
    shown = sweep_in_full("s")
    store.tracker().sync(shown)
    kept = store.trial(shown.trials[0]).info.run_id
    tags = {"prunetune.sweep_id": "s", "prunetune.kind": "trial"}
    for trial_id in (shown.trials[0].trial_id, "of an older journal"):
        extra = store.client.create_run(
            store.experiment_id, tags=tags | {"prunetune.trial_id": trial_id}
        )
        store.client.create_logged_model(
            store.experiment_id,
            source_run_id=extra.info.run_id,
            tags={
                "prunetune.sweep_id": "s",
                "prunetune.trial_id": trial_id,
                "prunetune.rung": "0",
                "frontier": "true",
            },
        )
    store.client.create_run(
        store.experiment_id, tags={"prunetune.sweep_id": "s", "prunetune.kind": "sweep"}
    )
    store.tracker().sync(shown)
    assert store.trial(shown.trials[0]).info.run_id == kept
    assert len(store.runs("tags.`prunetune.kind` = 'trial'")) == 3
    assert store.sweep().info.run_name == "sweep s"
    assert store.points() == points_of(shown)
    models = store.client.search_logged_models([store.experiment_id])
    assert len(models) == len(shown.frontier.points)


def test_a_run_deleted_by_hand_is_made_again(store: Store) -> None:
    tracker, record = store.tracker(), trial(0, errors=(0.5,))
    tracker.sync(snapshot("s", record))
    store.client.delete_run(store.trial(record).info.run_id)
    longer = snapshot("s", trial(0, errors=(0.5, 0.4)))
    with pytest.raises(Exception, match="must be in the 'active' state"):
        tracker.sync(longer)
    tracker.sync(longer)
    assert store.trial(record).data.metrics["val_error"] == 0.4
    assert store.points() == points_of(longer)


def test_an_extended_sweep_opens_again_and_shows_its_new_config(store: Store) -> None:
    first = finished(trial(0, errors=(0.5,)), TrialState.COMPLETE)
    store.tracker().sync(snapshot("s", first, finished=True))
    extended = snapshot("s", first, trial(1), config={"search": {"trials": 16}})
    for _ in range(2):
        store.tracker().sync(extended)
        run = store.sweep()
        assert run.info.status == "RUNNING"
        assert run.data.params["search.trials"] == "8"  # MLflow never changes a param
        assert run.data.tags["prunetune.changed.search.trials"] == "16"


# --------------------------------------------------------------------------------------- artifacts


def test_an_attached_model_loads_through_pyfunc(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "constant_model.py").write_text(LOADER)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store.uri)
    export = tmp_path / "export"
    export.mkdir()
    (export / "value.txt").write_text("0.25")
    shown = snapshot("s", trial(0, errors=(0.5,)))
    tracker = store.tracker()

    tracker.attach_model(shown.frontier.points[0], export)
    tracker.sync(replace(shown, frontier=Frontier()))  # no model yet: it waits
    tracker.sync(shown)

    (model,) = store.frontier()
    assert model.status == LoggedModelStatus.READY
    loaded = pyfunc.load_model(f"models:/{model.model_id}")
    probabilities = loaded.predict(np.zeros((3, 8, 8, 3), dtype=np.uint8))
    assert probabilities.tolist() == [[0.25, 0.25]] * 3
    with pytest.raises(Exception, match="uint8"):
        loaded.predict(np.zeros((3, 8, 8, 3), dtype=np.float32))

    (export / "value.txt").write_text("0.75")
    again = store.tracker()  # uploads are remembered over a restart
    again.attach_model(shown.frontier.points[0], export)
    again.sync(shown)
    loaded = pyfunc.load_model(f"models:/{model.model_id}")
    assert loaded.predict(np.zeros((1, 8, 8, 3), dtype=np.uint8)).tolist() == [[0.25, 0.25]]


def test_attached_files_lie_beside_the_sweep_in_their_last_version(
    store: Store, tmp_path: Path
) -> None:
    report = tmp_path / "report.html"
    tracker = store.tracker()
    for text in ("first", "second"):
        report.write_text(text)
        tracker.attach_files(report)
        tracker.sync(snapshot("s"))
    uri = f"{store.sweep().info.artifact_uri}/report.html"
    assert Path(download_artifacts(uri)).read_text() == "second"
    report.unlink()
    tracker.sync(snapshot("s"))  # what was uploaded is not wanted again


def test_what_is_not_there_cannot_be_attached(store: Store, tmp_path: Path) -> None:
    point = snapshot("s", trial(0, errors=(0.5,))).frontier.points[0]
    with pytest.raises(NotADirectoryError, match="export the model there first"):
        store.tracker().attach_model(point, tmp_path / "none")
    with pytest.raises(FileNotFoundError, match="write it before it is attached"):
        store.tracker().attach_files(tmp_path / "none.html")


# ------------------------------------------------------------------------------------- the thread


def test_the_thread_follows_the_sweep_and_close_shows_its_end(store: Store) -> None:
    record = trial(0, errors=(0.5,))
    latest = [snapshot("s", record)]
    tracker = store.tracker()
    tracker.check()
    tracker.start(lambda: latest[-1])
    _wait_for(lambda: len(store.runs("tags.`prunetune.kind` = 'trial'")) == 1)
    latest.append(snapshot("s", finished(record, TrialState.COMPLETE), finished=True))
    assert tracker.close(timeout_seconds=20)
    assert store.sweep().info.status == "FINISHED"
    assert store.trial(record).info.status == "FINISHED"


def test_a_sweep_that_is_left_is_killed_and_a_resumed_one_runs(store: Store) -> None:
    shown = snapshot("s", trial(0))
    for expected in ("KILLED", "KILLED"):
        tracker = store.tracker()
        tracker.start(lambda: shown)
        assert tracker.close(timeout_seconds=20)
        assert store.sweep().info.status == expected
        store.tracker().sync(shown)
        assert store.sweep().info.status == "RUNNING"


def test_the_threads_life_is_checked(store: Store) -> None:
    tracker = store.tracker()
    with pytest.raises(RuntimeError, match="never started"):
        tracker.close(timeout_seconds=1)
    tracker.start(lambda: snapshot("s"))
    with pytest.raises(RuntimeError, match="started already"):
        tracker.start(lambda: snapshot("s"))
    assert tracker.close(timeout_seconds=20)


def test_an_error_in_the_snapshot_does_not_end_the_thread(
    store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    calls = 0

    def flaky() -> Snapshot:
        nonlocal calls
        calls += 1
        if calls < 3:
            raise KeyError("the ledger is being read")
        return snapshot("s")

    tracker = store.tracker()
    tracker.start(flaky)
    _wait_for(lambda: calls > 3)
    assert tracker.close(timeout_seconds=20)
    assert len([r for r in caplog.records if "is not up to date" in r.message]) == 1


# ---------------------------------------------------------------------------------------- outages


def test_a_server_that_comes_late_misses_nothing(
    store: Store, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="orchestrator.tracking")
    port = _free_port()
    uri = f"http://127.0.0.1:{port}"
    shown = sweep_in_full("s")
    tracker = store.tracker(uri=uri, artifact_location=None, longest_pause_seconds=0.5)

    with pytest.raises(InputError, match=f"MLflow at {uri} cannot be used"):
        tracker.check()
    tracker.start(lambda: shown)
    with _Server(store.path, port, tmp_path / "server.log"):
        _wait_for(lambda: any("is back" in r.message for r in caplog.records), seconds=60)
        assert store.points() == points_of(shown)
        assert tracker.close(timeout_seconds=30)
        assert store.trial(shown.trials[1]).info.status == "FINISHED"
        assert store.sweep().info.status == "KILLED"
    assert len([r for r in caplog.records if "is not up to date" in r.message]) == 1


def test_a_server_that_is_away_is_noticed_at_once(store: Store) -> None:
    start = time.monotonic()
    with pytest.raises(InputError, match="Start the server or correct the tracking URI"):
        store.tracker(uri=f"http://127.0.0.1:{_free_port()}").check()
    assert time.monotonic() - start < 10  # MLflow alone tries for minutes


def test_closing_without_a_server_ends_in_time_and_says_so(store: Store) -> None:
    tracker = store.tracker(uri=f"http://127.0.0.1:{_free_port()}")
    tracker.start(lambda: snapshot("s"))
    start = time.monotonic()
    assert not tracker.close(timeout_seconds=0.5)
    assert time.monotonic() - start < 3


# --------------------------------------------------------------------------------------- bad input


def test_a_deleted_experiment_is_named_with_the_mend(store: Store) -> None:
    store.tracker().check()
    store.client.delete_experiment(store.experiment_id)
    with pytest.raises(InputError, match="mlflow experiments restore"):
        store.tracker().check()


def test_a_uri_that_mlflow_does_not_know_is_refused(store: Store) -> None:
    with pytest.raises(InputError, match="correct the tracking URI"):
        store.tracker(uri="gopher://example").check()


def test_an_interval_must_be_positive(store: Store) -> None:
    with pytest.raises(ValueError, match="interval_seconds=0 must be positive"):
        store.tracker(interval_seconds=0)


def test_a_frontier_of_other_trials_is_refused() -> None:
    with pytest.raises(ValueError, match="which the trials do not"):
        snapshot("s", frontier=frontier_of((trial(0, errors=(0.5,)),)))
    with pytest.raises(ValueError, match="single quote"):
        snapshot("it's")


# ----------------------------------------------------------------------------------------- server


class _Server:
    """A real MLflow server on loopback, on the module's SQLite file."""

    def __init__(self, database: Path, port: int, log: Path) -> None:
        self._log = log.open("w")
        self._process = subprocess.Popen(
            [
                sys.executable, "-m", "mlflow", "server",
                "--backend-store-uri", f"sqlite:///{database}",
                "--artifacts-destination", str(log.parent / "served"),
                "--host", "127.0.0.1", "--port", str(port), "--workers", "1",
            ],
            stdout=self._log,
            stderr=subprocess.STDOUT,
            env=os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
            start_new_session=True,
        )  # fmt: skip

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        os.killpg(self._process.pid, 15)
        self._process.wait(timeout=20)
        self._log.close()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def _wait_for(condition: Any, *, seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)
