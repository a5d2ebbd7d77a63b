"""`kill -9` on the driver at random moments, then the same command: as if nothing had happened."""

import random
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import optuna
import pytest
import yaml
from mlflow import MlflowClient
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

from analysis.table import read_measurements, read_trials, rows
from orchestrator.config import SweepConfig, read_config
from orchestrator.sweep import Sweep
from tests.journals import events_of
from tests.waiting import LIMIT_SECONDS, wait_until

pytestmark = pytest.mark.timeout(900)
"""Seconds, far more than four starts of a driver take on a busy machine."""

TRIALS = 24
CONFIG = {
    "name": "killed",
    "seed": 3,
    "task": {"source": "digits", "resolution": 16, "mirror": False},
    "backbone": {"model": "test_resnet"},
    "budget": {"trials": TRIALS},
    "rungs": {"min_flops": 2e9, "max_flops": 2e10, "per_decade": 3},
    # generations, so that the killed sweep can be compared with one that was left alone
    "search": {"sampler": "model", "scheduler": "race", "generation": 4, "min_peers": 3},
    # no recipe so cheap a step that its compute takes minutes of steps, nor one long prepared
    "space": {
        "ranges": {
            "criterion": ["l1", "random"],
            "ridge_repair": False,
            "batch_size": 32,
            "resolution": 16,
            "pruning_ratio": [0.0, 0.5],
            "trainable_depth": [0.5, 1.0],
            "target_rung": [1, 3],
        }
    },
}


def _config(folder: Path) -> Path:
    path = folder / "sweep.yaml"
    path.write_text(yaml.safe_dump(CONFIG | {"storage": {"folder": str(folder / "run")}}))
    return path


def _start(config: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "orchestrator", "sweep", str(config)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


def _finish(config: Path) -> None:
    with _start(config) as process:
        try:
            output, _ = process.communicate()
        finally:
            process.kill()  # where the test's time is over
    assert process.returncode == 0, output.decode()


def _kill_at_a_random_moment(config: Path, chance: random.Random, *, latest: int) -> None:
    """Starts the driver and kills it a few events later, somewhere between two of them.

    It is killed when the journal has `latest` events, long before the sweep is over, at the latest.
    """

    def events() -> int:
        return len(events_of(config.parent / "run"))

    wanted = max(events() + 1, min(events() + chance.randint(1, 8), latest))
    process = _start(config)
    try:
        wait_until(
            lambda: events() >= wanted or process.poll() is not None,
            what=f"the journal has {wanted} events",
        )
        moment = time.monotonic() + chance.uniform(0.0, 0.6)
        wait_until(lambda: events() >= latest or time.monotonic() >= moment, what="it is time")
        assert process.poll() is None, "the driver ended before it was killed"
    finally:
        process.kill()
        process.communicate(timeout=LIMIT_SECONDS)


@pytest.fixture(scope="module")
def undisturbed(local_ray: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the same sweep, left alone in this process."""
    folder = tmp_path_factory.mktemp("undisturbed")
    Sweep(read_config(SweepConfig, _config(folder))).run()
    return folder


@pytest.mark.parametrize(
    "kills", [2, pytest.param(20, marks=[pytest.mark.slow, pytest.mark.timeout(3600)])]
)
def test_a_killed_driver_loses_and_repeats_nothing(
    kills: int, tmp_path: Path, undisturbed: Path
) -> None:
    config = _config(tmp_path)
    chance = random.Random(kills)
    least = len(
        events_of(undisturbed / "run")
    )  # and more with each time that trials are set up again
    for kill in range(1, kills + 1):
        _kill_at_a_random_moment(config, chance, latest=least * kill // (kills + 1))
    _finish(config)

    _check_journal(events_of(tmp_path / "run"))
    assert _decisions(tmp_path) == _decisions(undisturbed)
    _check_tables(tmp_path, undisturbed)
    _check_study(tmp_path)
    _check_mlflow(tmp_path)


def _check_journal(events: list[dict[str, Any]]) -> None:
    """No finished trial was run again and none is missing."""
    finished: set[str] = set()
    for event in events:
        if event["event"] in ("measured", "restarted", "finished"):
            assert event["trial_id"] not in finished
        if event["event"] == "finished":
            finished.add(event["trial_id"])
    assert len(finished) == TRIALS
    measured = Counter(
        (e["trial_id"], e["measurement"]["rung"]) for e in events if e["event"] == "measured"
    )
    assert set(measured.values()) == {1}


def _decisions(folder: Path) -> dict[str, list[Any]]:
    """All that was decided: in order what began, went on and was let go, and then how each ended.

    Trials of a generation end in any order.
    """
    events = events_of(folder / "run")
    about = ("event", "trial_id", "trial_ids", "seed", "continues", "confirms", "params")
    begun = [
        [event.get(name) for name in about]
        for event in events
        if event["event"] in ("suggested", "resumed", "released")
    ]
    ended = sorted(
        (event["trial_id"], event["state"], event["reason"] or "")
        for event in events
        if event["event"] == "finished"
    )
    return {"begun": begun, "ended": ended}


def _check_tables(killed: Path, undisturbed: Path) -> None:
    """No row twice, none missing, and every value as if there had been no kill."""
    same = ("number", "rung", "train_flops", "val_error", "val_loss", "test_error", "recipe_id")
    curves = [
        sorted(tuple(row.get(name) for name in same) for row in rows(read_measurements(at / "run")))
        for at in (killed, undisturbed)
    ]
    assert curves[0] == curves[1]
    assert len({row[:2] for row in curves[0]}) == len(curves[0])
    states = [
        {row["number"]: row["state"] for row in rows(read_trials(at / "run"))}
        for at in (killed, undisturbed)
    ]
    assert states[0] == states[1]


def _check_study(folder: Path) -> None:
    """Optuna has every trial once and none running."""
    storage = JournalStorage(JournalFileBackend(str(folder / "run" / "optuna.journal")))
    (summary,) = optuna.get_all_study_summaries(storage)
    study = optuna.load_study(study_name=summary.study_name, storage=storage)
    assert len(study.trials) == TRIALS
    assert all(trial.state.is_finished() for trial in study.trials)


def _check_mlflow(folder: Path) -> None:
    """MLflow has one parent and every trial once, all ended, each with its whole curve."""
    client = MlflowClient(tracking_uri=f"sqlite:///{folder / 'run' / 'mlflow.db'}")
    (experiment,) = [e for e in client.search_experiments() if e.name == "prunetune"]
    runs = client.search_runs([experiment.experiment_id], max_results=1000)
    assert {run.info.status for run in runs} <= {"FINISHED", "FAILED", "KILLED"}
    parents = [run for run in runs if "mlflow.parentRunId" not in run.data.tags]
    assert len(parents) == 1
    trials = Counter(run.data.tags["prunetune.trial_id"] for run in runs if run not in parents)
    assert len(trials) == TRIALS
    assert set(trials.values()) == {1}
    curve = Counter(row["trial_id"] for row in rows(read_measurements(folder / "run")))
    for run in runs:
        if run not in parents:
            trial_id = run.data.tags["prunetune.trial_id"]
            history = client.get_metric_history(run.info.run_id, "val_error")
            assert len(history) == curve.get(trial_id, 0)
