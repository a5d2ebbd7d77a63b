"""The mirror sends differences, and mends what it finds after a restart."""

import json
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
from mlflow import pyfunc
from mlflow.artifacts import download_artifacts, load_dict
from mlflow.entities import LoggedModelStatus, Metric

from analysis.frontier import Frontier
from orchestrator.store.ledger import TrialState
from orchestrator.tracking import mirror as tracking_mirror
from orchestrator.tracking.views import model_view, sweep_view
from tests.orchestrator.tracking.tracking_store import (
    LOADER,
    Store,
    finished,
    points_of,
    snapshot,
    sweep_in_full,
    trial,
)


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
    (point,) = (p for p in longer.frontier.points if p.val_error == 0.45)
    model = model_view(point, longer.trials[0], sweep_id="s")
    totals = sweep_view(longer, now_ms=0).metrics
    assert added == {
        "runs": 0,
        "params": 0,
        "tags": 0,
        "metrics": len(model.metrics) + len(totals),
        "logged_models": 1,
        "logged_model_metrics": len(model.metrics),
        "logged_model_params": len(model.params),
        "logged_model_tags": len(model.tags) + 1,  # and that it is on the frontier
    }


def test_every_further_trial_costs_the_same_few_calls(store: Store, statements: list[str]) -> None:
    records = tuple(
        trial(n, errors=tuple(0.9 - 0.01 * n - 0.05 * r for r in range(6))) for n in range(20)
    )
    store.tracker().check()  # makes the experiment
    sent = []
    for count in (5, 10, 20):
        statements.clear()
        store.tracker().sync(snapshot(f"s{count}", *records[:count]))
        sent.append(len(statements))
        shown = store.runs(
            f"tags.`prunetune.kind` = 'trial' and tags.`prunetune.sweep_id` = 's{count}'"
        )
        assert len(shown) == count
    assert sent[2] - sent[1] == 2 * (sent[1] - sent[0])
    values = sum(len(asdict(measurement)) for measurement in records[0].measurements)
    assert (sent[1] - sent[0]) / 5 < values, "a trial's values travel together"


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
