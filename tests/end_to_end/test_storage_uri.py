"""A sweep whose journal, tables and checkpoints lie elsewhere, as on a cluster's shared store."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from analysis.table import frontier_of, read_measurements, read_trials, rows
from orchestrator.cli import app
from orchestrator.config import SweepConfig, validate
from orchestrator.store.folder import STORED
from orchestrator.sweep import Sweep
from trainables.checkpoints import complete_rungs


class Elsewhere:
    """A driver's folder, and the store that `storage.uri` names."""

    def __init__(self, root: Path) -> None:
        self.folder = root / "driver"
        self.store = root / "bucket" / "prefix"

    def run(self, *, trials: int) -> None:
        """Runs the sweep, or extends it."""
        values = {
            "name": "elsewhere",
            "task": {"source": "digits", "resolution": 16, "mirror": False},
            "backbone": {"model": "test_resnet"},
            "budget": {"trials": trials},
            "rungs": {"min_flops": 2e9, "max_flops": 5e9, "per_decade": 3},
            "space": {
                "ranges": {
                    "pruning_ratio": [0.0, 0.25],
                    "criterion": "l1",
                    "ridge_repair": False,
                    "batch_size": 64,
                    "trainable_depth": 1.0,
                    "augmentation": 0.0,
                    "target_rung": 1,
                }
            },
            "resources": {"concurrent": 1},
            "storage": {"folder": str(self.folder), "uri": self.store.as_uri()},
        }
        frontier = Sweep(validate(SweepConfig, values, what="the test's config")).run()
        assert frontier == frontier_of(read_measurements(self.store))

    def trials(self) -> list[dict[str, object]]:
        return rows(read_trials(self.store))


@pytest.fixture(scope="module")
def sweep(local_ray: None, tmp_path_factory: pytest.TempPathFactory) -> Elsewhere:
    """A sweep of two trials whose driver's machine was lost, extended by another machine."""
    sweep = Elsewhere(tmp_path_factory.mktemp("elsewhere"))
    sweep.run(trials=2)
    before = sweep.trials()
    sweep.folder = sweep.folder.with_name("another-driver")
    sweep.run(trials=3)
    assert sweep.trials()[:2] == before, "finished trials were changed or run again"
    return sweep


def test_the_store_holds_what_the_sweep_cannot_lose(sweep: Elsewhere) -> None:
    assert sorted(path.name for path in sweep.store.iterdir()) == sorted(STORED)
    assert not [name for name in STORED if (sweep.folder / name).exists()]
    assert [trial["state"] for trial in sweep.trials()] == ["complete"] * 3
    for point in frontier_of(read_measurements(sweep.store)).points:
        uri = (sweep.store / "trials" / point.trial_id).as_uri()
        assert point.rung in complete_rungs(uri)
        assert point.test_error is not None


def test_the_folder_holds_the_views(sweep: Elsewhere) -> None:
    for name in ("sweep.yaml", "report.html", "frontier.png", "optuna.journal", "mlflow.db"):
        assert (sweep.folder / name).is_file(), name
    assert "No trial has been measured yet" not in (sweep.folder / "report.html").read_text()


def test_the_commands_find_the_store_by_the_folder(sweep: Elsewhere, tmp_path: Path) -> None:
    folder, runner = str(sweep.folder), CliRunner()

    listed = runner.invoke(app, ["frontier", folder, "--json"], catch_exceptions=False)
    points = frontier_of(read_measurements(sweep.store)).points
    assert [p["trial_id"] for p in json.loads(listed.stdout)] == [p.trial_id for p in points]

    page = tmp_path / "report.html"
    runner.invoke(app, ["report", folder, "-o", str(page)], catch_exceptions=False)
    assert page.read_text() == (sweep.folder / "report.html").read_text()

    out = tmp_path / "model"
    runner.invoke(app, ["export", folder, "-o", str(out)], catch_exceptions=False)
    assert any(out.glob("*.safetensors"))
