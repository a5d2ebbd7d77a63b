"""A sweep over three raylets, one of which is killed while its trial runs."""

import json
import tempfile
import threading
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ray.cluster_utils import Cluster

from analysis.table import read_measurements, read_trials, rows
from orchestrator.config import SweepConfig, validate
from orchestrator.search.driver import Driver
from orchestrator.search.strategy import Decision
from orchestrator.sweep import Sweep
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


class Killer(threading.Thread):
    """Kills one worker's raylet, and all that runs under it, half-way through a sweep.

    The moment: a third of the trials are finished, and both workers have a trial between rungs.
    """

    def __init__(self, cluster: Cluster, folder: Path) -> None:
        super().__init__(daemon=True)
        self._cluster = cluster
        self._folder = folder
        self._over = threading.Event()
        self.struck = False

    def run(self) -> None:
        while not self._over.wait(0.02):
            if self._is_time():
                victim = next(iter(self._cluster.worker_nodes))
                self._cluster.remove_node(victim, allow_graceful=False)
                self.struck = True
                return

    def stop(self) -> None:
        self._over.set()
        self.join()

    def _is_time(self) -> bool:
        events = _events(self._folder)
        finished = {event["trial_id"] for event in events if event["event"] == "finished"}
        measured = {event["trial_id"] for event in events if event["event"] == "measured"}
        return len(finished) >= TRIALS // 3 and len(measured - finished) == 2


def _events(folder: Path) -> list[dict[str, Any]]:
    """The journal's whole lines."""
    segments = sorted((folder / "journal").glob("segment-*"))
    lines = [line for segment in segments for line in segment.read_text().split("\n")[:-1]]
    return [json.loads(line) for line in lines]


@pytest.fixture
def reports(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[int]]:
    """The rungs that every trial reports, in the order in which they reach the driver.

    The journal tells each rung once; these tell whether a trial was sent back further.
    """
    heard: dict[str, list[int]] = defaultdict(list)
    take = Driver.report

    def listen(driver: Driver, trial_id: str, report: Report) -> Decision:
        assert report.measurement is not None
        heard[trial_id].append(report.measurement.rung)
        return take(driver, trial_id, report)

    monkeypatch.setattr(Driver, "report", listen)
    return heard


def test_a_sweep_outlives_a_worker(
    cluster: Cluster, reports: dict[str, list[int]], tmp_path: Path
) -> None:
    killer = Killer(cluster, tmp_path)
    killer.start()
    try:
        frontier = Sweep(_config(tmp_path, cluster.address)).run()
    finally:
        killer.stop()
    assert killer.struck, "the sweep was over before the kill: give it more to do"

    trials = {trial["trial_id"]: trial for trial in rows(read_trials(tmp_path))}
    table = rows(read_measurements(tmp_path))
    assert [trial["state"] for trial in trials.values()] == ["complete"] * TRIALS

    lost = [event for event in _events(tmp_path) if event["event"] == "restarted"]
    assert lost, "no trial was on the killed worker"
    assert all("its worker was lost" in event["reason"] for event in lost)
    for trial_id, trial in trials.items():
        assert trial["attempt"] == sum(event["trial_id"] == trial_id for event in lost)

    for trial_id, rungs in reports.items():
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
