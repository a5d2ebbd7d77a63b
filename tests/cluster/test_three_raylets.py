"""A sweep over three raylets, one of which is killed while its trial runs."""

import os
import signal
import subprocess
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ray.cluster_utils import Cluster
from ray.tune.experiment import Trial

from analysis.table import read_measurements, read_trials, rows
from orchestrator.cluster.tune_adapters import DriverScheduler
from orchestrator.config import SweepConfig, validate
from orchestrator.sweep import Sweep
from tests.journals import events_of
from trainables.measurement import Report

pytestmark = pytest.mark.timeout(240)

TRIALS = 6
LAST_RUNG = 6
NOTICE_SECONDS = 1
"""How long a raylet may be silent before it counts as dead, three times over."""


def _config(folder: Path, address: str) -> SweepConfig:
    values = {
        "name": "three-raylets",
        "task": {"source": "digits", "resolution": 16, "mirror": False},
        "backbone": {"model": "test_resnet"},
        "budget": {"trials": TRIALS},
        "rungs": {"min_flops": 8e9, "max_flops": 8e9 * 10**0.6, "per_decade": 10},
        "search": {"reduction_factor": None},
        "space": {
            "ranges": {
                "pruning_ratio": [0.0, 0.2],
                "criterion": "l1",
                "ridge_repair": False,
                "batch_size": 64,
                "trainable_depth": 1.0,
                "resolution": 16,
                "augmentation": 0.0,
                "target_rung": LAST_RUNG,
                "optimizer": "sgd",  # schedule-free norms are settled at every rung, charged once
            }
        },
        "ray": {"address": address},
        "storage": {"folder": str(folder)},
    }
    return validate(SweepConfig, values, what="the test's config")


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    """A head without CPUs, where the driver is, and two workers that hold a trial each."""
    with tempfile.TemporaryDirectory(prefix="ray-") as temporary:  # sockets want short paths
        # Ray leaves the newest cluster's address there for every `ray.init` to find.
        monkeypatch.setenv("RAY_TMPDIR", temporary)
        cluster = Cluster(
            initialize_head=True,
            head_node_args={
                "num_cpus": 0,
                "include_dashboard": False,
                "_system_config": {
                    "health_check_initial_delay_ms": 0,
                    "health_check_period_ms": 1000 * NOTICE_SECONDS,
                    "health_check_failure_threshold": 3,
                },
            },
        )
        try:
            for _ in range(2):
                cluster.add_node(num_cpus=1)
            cluster.wait_for_nodes()
            yield cluster
        finally:
            cluster.shutdown()


class Reports:
    """The reports of trials, and the kill of a worker as soon as one may strike.

    The kill happens while the driver is told of a rung, so that the sweep cannot be over before:
    a third of the trials are finished, and the one that reports has most of its rungs before it.
    Its worker's raylet dies, and the trial's own process, as they do when a machine is lost.
    """

    def __init__(self, cluster: Cluster, folder: Path) -> None:
        self.rungs: dict[str, list[int]] = defaultdict(list)
        """The rungs that every trial reports, in the order in which they reach the driver. The
        journal tells each rung once; these tell whether a trial was sent back further."""
        self.lost: str | None = None
        """The trial whose worker was killed."""
        self._cluster = cluster
        self._folder = folder

    def hear(self, trial_id: str, result: Mapping[str, Any]) -> None:
        """Hears one report, before it is answered."""
        report = Report.from_json(result["report"])
        assert report.measurement is not None
        self.rungs[trial_id].append(report.measurement.rung)
        finished = sum(event["event"] == "finished" for event in events_of(self._folder))
        if self.lost is None and finished >= TRIALS // 3 and report.measurement.rung == 1:
            self._kill_worker(result["pid"])
            self.lost = trial_id

    def _kill_worker(self, pid: int) -> None:
        raylet = _parent(pid)
        (victim,) = (n for n in self._cluster.worker_nodes if raylet in _processes(n))
        self._cluster.remove_node(victim, allow_graceful=False)
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)  # it would notice a second later, and work until then


def _parent(pid: int) -> int:
    shown = subprocess.run(["ps", "-o", "ppid=", "-p", str(pid)], check=True, capture_output=True)
    return int(shown.stdout)


def _processes(node: Any) -> set[int]:
    """The ids of a Ray node's own processes, its raylet's among them."""
    return {info.process.pid for infos in node.all_processes.values() for info in infos}


@pytest.fixture
def reports(cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Reports:
    """Listens where Tune hands reports to the driver."""
    heard = Reports(cluster, tmp_path)
    take = DriverScheduler.on_trial_result

    def listen(
        scheduler: DriverScheduler, controller: Any, trial: Trial, result: dict[str, Any]
    ) -> str:
        heard.hear(trial.config["trial_id"], result)
        return take(scheduler, controller, trial, result)

    monkeypatch.setattr(DriverScheduler, "on_trial_result", listen)
    return heard


def test_a_sweep_outlives_a_worker(cluster: Cluster, reports: Reports, tmp_path: Path) -> None:
    frontier = Sweep(_config(tmp_path, cluster.address)).run()
    assert reports.lost is not None

    trials = {trial["trial_id"]: trial for trial in rows(read_trials(tmp_path))}
    table = rows(read_measurements(tmp_path))
    assert [trial["state"] for trial in trials.values()] == ["complete"] * TRIALS

    lost = [event for event in events_of(tmp_path) if event["event"] == "restarted"]
    assert reports.lost in {event["trial_id"] for event in lost}
    assert all("its worker was lost" in event["reason"] for event in lost)
    for trial_id, trial in trials.items():
        assert trial["attempt"] == sum(event["trial_id"] == trial_id for event in lost)

    for trial_id, rungs in reports.rungs.items():
        curve = [row for row in table if row["trial_id"] == trial_id]
        assert [row["rung"] for row in curve] == list(range(LAST_RUNG + 1))
        assert rungs == sorted(rungs), "a lost trial goes on from its last rung, not from an older"
        # what it repeats, it has lost: nothing was paid for twice
        paid = sum(row["executed_flops"] for row in curve)
        assert paid == pytest.approx(curve[-1]["train_flops"], rel=1e-12)
    assert max(trial["attempt"] for trial in trials.values()) <= 1

    assert [(p.train_flops, p.val_error) for p in frontier.points] == _frontier_of(table)


def _frontier_of(table: list[dict[str, Any]]) -> list[tuple[float, float]]:
    """(training FLOPs, validation error) of what no other measurement beats, ascending compute."""
    costs = np.array([(row["train_flops"], row["val_error"]) for row in table])
    beaten = [((costs <= cost).all(1) & (costs < cost).any(1)).any() for cost in costs]
    return sorted({(float(f), float(e)) for f, e in costs[~np.array(beaten)]})
