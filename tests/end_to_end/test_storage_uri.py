"""A sweep whose journal, tables and checkpoints lie elsewhere, as on a cluster without a disk."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from analysis.frontier import Frontier
from analysis.table import frontier_of, read_measurements, read_trials
from orchestrator.cli import app
from orchestrator.config import SweepConfig, validate
from orchestrator.sweep import Sweep


def _config(folder: Path, store: Path, *, trials: int) -> SweepConfig:
    values = {
        "name": "elsewhere",
        "task": {"source": "digits", "resolution": 16, "mirror": False},
        "backbone": {"model": "test_resnet"},
        "budget": {"trials": trials},
        "rungs": {"min_flops": 2e9, "max_flops": 1e10, "per_decade": 3},
        "space": {"ranges": {"batch_size": 16, "target_rung": [1, 2]}},
        "resources": {"concurrent": 1},
        "storage": {"folder": str(folder), "uri": store.as_uri()},
    }
    return validate(SweepConfig, values, what="the test's config")


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Frontier]:
    """The sweep's folder, its store, and the frontier that it returned."""
    folder = tmp_path_factory.mktemp("driver") / "sweep"
    store = tmp_path_factory.mktemp("bucket") / "some" / "prefix"
    return folder, store, Sweep(_config(folder, store, trials=3)).run()
