"""MLflow shows a sweep as it went."""

from dataclasses import replace

import pytest
from mlflow.artifacts import load_dict

from analysis.frontier import Frontier
from orchestrator.store.ledger import TrialState
from orchestrator.tracking.views import FRONTIER_TABLE, MAX_TEXT_LENGTH, STATUSES
from tests.orchestrator.tracking.tracking_store import (
    Store,
    finished,
    frontier_of,
    measurement,
    points_of,
    snapshot,
    trial,
)


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
        "frontier_confirmed": 0,
        "trials_running": 1,
        "trials_paused": 0,
        "trials_halved": 1,
        "trials_complete": 0,
        "trials_diverged": 0,
        "trials_failed": 0,
        "trials_infeasible": 0,
    }
    config = load_dict(f"{run.info.artifact_uri}/config.json")
    assert config == {"seed": 1, "search": {"trials": 8, "spaces": ["joint"], "budget": None}}


def test_a_trial_is_a_nested_run_with_its_recipe_and_curve(store: Store) -> None:
    record = trial(3, errors=(0.5, 0.4), attempt=2, params={"adamw_rate": 0.01, "batch_size": 63})
    store.tracker().sync(snapshot("s", record))

    run = store.trial(record)
    assert run.data.tags["mlflow.parentRunId"] == store.sweep().info.run_id
    assert run.data.tags["prunetune.attempt"] == "2"
    assert run.data.tags["prunetune.state"] == "running"
    assert run.data.tags["frontier"] == "true"
    assert run.data.params["method"] == "filter_pruning"
    assert run.data.params["ratio"] == "0.5"
    assert run.data.params["seed"] == "103"
    assert run.data.params["learning_rate"] == run.data.params["adamw_rate"] == "0.01"
    assert run.data.params["batch_size"] == "64", "the recipe's value counts, not the sampler's"
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
    if state.finished:
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


def test_expected_errors_and_what_confirms_them_are_told(store: Store) -> None:
    first = trial(0, errors=(0.5,))
    again = trial(1, errors=(0.6,), confirms=first.trial_id)
    (point,) = frontier_of((first, again)).points
    frontier = Frontier((replace(point, expected_error=0.52, confirming_error=0.6),))
    store.tracker().sync(snapshot("s", first, again, frontier=frontier))

    assert store.trial(again).data.tags["prunetune.confirms"] == first.trial_id
    assert "prunetune.confirms" not in store.trial(first).data.tags
    assert store.sweep().data.metrics["frontier_confirmed"] == 1
    table = load_dict(f"{store.sweep().info.artifact_uri}/{FRONTIER_TABLE}")
    row = dict(zip(table["columns"], table["data"][0], strict=True))
    assert (row["val_error"], row["expected_error"], row["confirming_error"]) == (0.5, 0.52, 0.6)
