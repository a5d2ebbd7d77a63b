"""The tracker's thread against real MLflow: a server process for outages, and bad input."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from orchestrator.store.ledger import TrialState
from orchestrator.tracking.tracker import Snapshot
from tests.orchestrator.tracking.tracking_store import (
    Store,
    finished,
    frontier_of,
    points_of,
    snapshot,
    sweep_in_full,
    trial,
)
from tests.waiting import LIMIT_SECONDS, wait_until
from trainables.errors import InputError


def test_the_thread_follows_the_sweep_and_close_shows_its_end(store: Store) -> None:
    record = trial(0, errors=(0.5,))
    latest = [snapshot("s", record)]
    tracker = store.tracker()
    tracker.check()
    tracker.start(lambda: latest[-1])
    wait_until(lambda: store.runs("tags.`prunetune.kind` = 'trial'"), what="the trial is shown")
    latest.append(snapshot("s", finished(record, TrialState.COMPLETE), finished=True))
    assert tracker.close(timeout_seconds=LIMIT_SECONDS)
    assert store.sweep().info.status == "FINISHED"
    assert store.trial(record).info.status == "FINISHED"


def test_a_sweep_that_is_left_is_killed_and_a_resumed_one_runs(store: Store) -> None:
    shown = snapshot("s", trial(0))
    for expected in ("KILLED", "KILLED"):
        tracker = store.tracker()
        tracker.start(lambda: shown)
        assert tracker.close(timeout_seconds=LIMIT_SECONDS)
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
    assert tracker.close(timeout_seconds=LIMIT_SECONDS)


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
    wait_until(lambda: calls > 3, what="the snapshot was asked for once more")
    assert tracker.close(timeout_seconds=LIMIT_SECONDS)
    assert len([r for r in caplog.records if "is not up to date" in r.message]) == 1


def test_a_server_that_comes_late_misses_nothing(
    store: Store, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="orchestrator.tracking.tracker")
    port = _free_port()
    uri = f"http://127.0.0.1:{port}"
    shown = sweep_in_full("s")
    tracker = store.tracker(uri=uri, artifact_location=None, longest_pause_seconds=0.5)

    with pytest.raises(InputError, match=f"MLflow at {uri} cannot be used"):
        tracker.check()
    tracker.start(lambda: shown)
    with _Server(store.path, port, tmp_path / "server.log"):
        wait_until(
            lambda: any("is back" in r.message for r in caplog.records), what="the server is back"
        )
        assert store.points() == points_of(shown)
        assert tracker.close(timeout_seconds=LIMIT_SECONDS)
        assert store.trial(shown.trials[1]).info.status == "FINISHED"
        assert store.sweep().info.status == "KILLED"
    assert len([r for r in caplog.records if "is not up to date" in r.message]) == 1


@pytest.mark.timeout(LIMIT_SECONDS)  # MLflow alone tries for longer
def test_a_server_that_is_away_is_noticed_at_once(store: Store) -> None:
    with pytest.raises(InputError, match="start the server or correct tracking.uri"):
        store.tracker(uri=f"http://127.0.0.1:{_free_port()}").check()


@pytest.mark.timeout(LIMIT_SECONDS)
def test_closing_without_a_server_ends_in_time_and_says_so(store: Store) -> None:
    tracker = store.tracker(uri=f"http://127.0.0.1:{_free_port()}")
    tracker.start(lambda: snapshot("s"))
    assert not tracker.close(timeout_seconds=0.5)


def test_a_deleted_experiment_is_named_with_the_mend(store: Store) -> None:
    store.tracker().check()
    store.client.delete_experiment(store.experiment_id)
    with pytest.raises(InputError, match="mlflow experiments restore"):
        store.tracker().check()


def test_a_uri_that_mlflow_does_not_know_is_refused(store: Store) -> None:
    with pytest.raises(InputError, match="correct tracking.uri"):
        store.tracker(uri="gopher://example").check()


def test_an_interval_must_be_positive(store: Store) -> None:
    with pytest.raises(ValueError, match="interval_seconds=0 must be positive"):
        store.tracker(interval_seconds=0)


def test_a_frontier_of_other_trials_is_refused() -> None:
    with pytest.raises(ValueError, match="which the trials do not"):
        snapshot("s", frontier=frontier_of((trial(0, errors=(0.5,)),)))
    with pytest.raises(ValueError, match="single quote"):
        snapshot("it's")


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
        self._process.wait(timeout=LIMIT_SECONDS)
        self._log.close()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port
