"""The tables say what the ledger says, soon and without being in its way."""

import logging
import threading
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from analysis.table import (
    frontier_of,
    parameters_of,
    read_measurements,
    read_trials,
    recipe_of,
    rows,
)
from orchestrator.store import tables
from orchestrator.store.ledger import Ledger, TrialState
from orchestrator.store.tables import TableWriter
from tests.orchestrator.fake_trials import MemoryJournal, disk, ledger_of, record, reported


@pytest.fixture
def ledger() -> Ledger:
    ledger = ledger_of({0: [0.5, 0.4], 1: [0.3], 2: []}, finished=[0])
    ledger.finished("t2", TrialState.INFEASIBLE, reason="no filter left", unmeasured_flops=2e8)
    return ledger


@pytest.fixture
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "MIN_PERIOD_SECONDS", 0.01)


def test_the_measurement_table_is_the_ledgers_curves(ledger: Ledger, tmp_path: Path) -> None:
    TableWriter(ledger, disk(tmp_path)).write()
    written = rows(read_measurements(tmp_path))
    expected = ledger.readings()
    assert len(written) == len(expected) == 3
    for row, (trial, measured, reading) in zip(written, expected, strict=True):
        assert {name: row[name] for name in measured.to_dict()} == measured.to_dict()
        assert recipe_of(row) == trial.recipe.flat()
        assert (row["sweep_id"], row["trial_id"], row["number"], row["attempt"]) == (
            "sweep",
            trial.trial_id,
            trial.number,
            reading.attempt,
        )
        assert (row["sweep_flops"], row["measured_at"]) == (
            reading.sweep_flops,
            reading.measured_at,
        )
        assert (row["trial_state"], row["recipe_id"], row["seed"], row["method"]) == (
            trial.state.value,
            trial.recipe.recipe_id,
            trial.seed,
            "filter_pruning",
        )
    assert frontier_of(written) == ledger.frontier


def test_the_trial_table_has_every_trial_and_what_became_of_it(
    ledger: Ledger, tmp_path: Path
) -> None:
    TableWriter(ledger, disk(tmp_path)).write()
    written = rows(read_trials(tmp_path))
    assert [(row["trial_id"], row["state"], row["reason"]) for row in written] == [
        ("t0", "complete", None),
        ("t1", "running", None),
        ("t2", "infeasible", "no filter left"),
    ]
    assert [row["executed_flops"] for row in written] == [2e9, 1e9, 2e8]
    assert [recipe_of(row) for row in written] == [t.recipe.flat() for t in ledger.trials()]


def test_the_trial_table_tells_the_fields_of_parameters_that_are_called_otherwise(
    ledger: Ledger, tmp_path: Path
) -> None:
    params = {"adamw_rate": 0.01, "mixing": "none", "batch_size": 32}
    ledger.suggested(record(3, params=params))
    TableWriter(ledger, disk(tmp_path)).write()
    assert parameters_of(read_trials(tmp_path)) == {
        "adamw_rate": ["learning_rate"],
        "mixing": ["mixup", "cutmix"],
    }
    assert parameters_of(pa.table({"trial_id": ["of an earlier version"]})) == {}


def test_writing_again_replaces_and_repeats_nothing(ledger: Ledger, tmp_path: Path) -> None:
    writer = TableWriter(ledger, disk(tmp_path))
    for rung in (1, 2, 3):
        ledger.measured("t1", reported(rung, 0.2))
        writer.write()
    keys = [(row["trial_id"], row["rung"]) for row in rows(read_measurements(tmp_path))]
    assert len(keys) == len(set(keys)) == 6
    assert [path.name for path in (tmp_path / "measurements").iterdir()] == ["part-0.parquet"]


def test_a_sweep_without_trials_has_empty_tables(tmp_path: Path) -> None:
    TableWriter(ledger_of({}), disk(tmp_path)).write()
    assert pq.read_table(tmp_path / "trials.parquet").num_rows == 0


def test_nothing_is_written_while_nothing_changes(ledger: Ledger, tmp_path: Path) -> None:
    writer = TableWriter(ledger, disk(tmp_path))
    writer.write()
    (tmp_path / "trials.parquet").unlink()
    writer.write()
    assert not (tmp_path / "trials.parquet").exists()
    ledger.tested("t0", 0, test_error=0.5)
    writer.write()
    assert (tmp_path / "trials.parquet").exists()


@pytest.mark.usefixtures("hurried")
def test_the_thread_follows_the_ledger_and_close_writes_the_last_state(
    ledger: Ledger, tmp_path: Path
) -> None:
    writer = TableWriter(ledger, disk(tmp_path))
    writer.start()
    reached = threading.Event()
    for _ in range(500):
        if (tmp_path / "trials.parquet").exists():
            break
        reached.wait(0.01)
    assert len(rows(read_measurements(tmp_path))) == 3
    ledger.measured("t1", reported(1, 0.2))
    writer.close()
    assert len(rows(read_measurements(tmp_path))) == 4


@pytest.mark.usefixtures("hurried")
def test_the_driver_may_write_while_the_thread_does(ledger: Ledger, tmp_path: Path) -> None:
    writer = TableWriter(ledger, disk(tmp_path))
    writer.start()
    for number in range(3, 40):
        ledger.suggested(record(number))
        ledger.measured(f"t{number}", reported(0, 0.5))
        writer.write()
        assert len(rows(read_trials(tmp_path))) == number + 1
    writer.close()


@pytest.mark.usefixtures("hurried")
def test_a_disk_that_is_away_delays_the_tables_and_ends_nothing(
    ledger: Ledger, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    (tmp_path / "measurements").write_text("a file where the folder should be")
    writer = TableWriter(ledger, disk(tmp_path))
    writer.start()
    waiting = threading.Event()
    for _ in range(500):
        if caplog.records:
            break
        waiting.wait(0.01)
    assert "cannot be written now" in caplog.text

    (tmp_path / "measurements").unlink()
    for _ in range(500):
        if (tmp_path / "trials.parquet").exists():
            break
        waiting.wait(0.01)
    writer.close()
    assert len(rows(read_measurements(tmp_path))) == 3


def test_close_says_when_the_last_state_cannot_be_written(ledger: Ledger, tmp_path: Path) -> None:
    (tmp_path / "measurements").write_text("a file where the folder should be")
    writer = TableWriter(ledger, disk(tmp_path))
    writer.start()
    with pytest.raises(OSError, match="measurements"):
        writer.close()


def test_the_tables_tell_what_is_expected_and_what_confirms_it(tmp_path: Path) -> None:
    ledger = Ledger(MemoryJournal())
    ledger.open(sweep_id="sweep", validation_images=300)
    first = record(0)
    again = replace(first, trial_id="again", number=1, seed=9, confirms=first.trial_id)
    for trial, error in ((first, 0.2), (again, 0.3)):
        ledger.suggested(trial)
        ledger.measured(trial.trial_id, reported(0, error))
    TableWriter(ledger, disk(tmp_path)).write()
    written = rows(read_measurements(tmp_path))
    assert [row["confirming_error"] for row in written] == [0.3, 0.2]
    assert 0.2 < written[0]["expected_error"] < written[1]["expected_error"]
    assert frontier_of(written) == ledger.frontier
    assert [row["confirms"] for row in rows(read_trials(tmp_path))] == [None, "t0"]
