"""Whole sweeps, nothing faked: Ray, Tune, Optuna, MLflow and torch on scikit-learn's digits.

One sweep is run, run again, extended, refused and begun anew; the tests look at it in this order.
"""

import errno
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import optuna
import pytest
import yaml
from mlflow.entities import LoggedModel, Run
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState as StudyState

from analysis.frontier import Frontier
from analysis.table import frontier_of, read_measurements, read_trials, rows
from orchestrator.config import SweepConfig, validate
from orchestrator.exporting import export_point
from orchestrator.store.journal import Journal
from orchestrator.store.ledger import Ledger
from orchestrator.sweep import Sweep
from orchestrator.tracking.views import TRIAL_ID_TAG
from tests.checkout import ROOT
from tests.journals import events_of
from tests.orchestrator.fake_trials import disk
from tests.waiting import LIMIT_SECONDS, wait_until
from trainables.errors import InputError
from trainables.export import load_exported

TRIALS = 10


def tiny(folder: Path, cache: Path) -> dict[str, Any]:
    """A sweep whose trials take a few steps each."""
    return {
        "name": "tiny",
        "task": {"source": "digits", "resolution": 16, "mirror": False, "max_train_images": 300},
        "backbone": {"model": "test_resnet"},
        "space": {
            "ranges": {
                "pruning_ratio": [0.0, 0.5],
                "trainable_depth": [0.5, 1.0],
                "batch_size": [32, 64],
                "learning_rate": {"low": 0.01},
            }
        },
        "budget": {"trials": TRIALS},
        "rungs": {"min_flops": 2e9, "max_flops": 1e10, "per_decade": 3},
        "search": {"min_peers": 4},
        "resources": {"concurrent": 2},
        "storage": {"folder": str(folder), "cache": str(cache)},
    }


@dataclass(frozen=True, kw_only=True)
class Swept:
    """A sweep as it was left."""

    folder: Path
    values: Mapping[str, Any]
    frontier: Frontier
    trials: list[dict[str, Any]]
    measurements: list[dict[str, Any]]
    happened: list[dict[str, Any]]
    """The events in its journal, without its being opened."""

    @property
    def tracking_uri(self) -> str:
        return f"sqlite:///{self.folder / 'mlflow.db'}"


def run(values: Mapping[str, Any], *, fresh: bool = False) -> Swept:
    config = validate(SweepConfig, values, what="the test")
    frontier = Sweep(config).run(fresh=fresh)
    return Swept(
        folder=config.folder,
        values=values,
        frontier=frontier,
        trials=rows(read_trials(config.folder)),
        measurements=rows(read_measurements(config.folder)),
        happened=[e for e in events_of(config.folder) if e["event"] != "opened"],
    )


ONE_ACTOR = {"resources": {"concurrent": 1}}
"""For a few trials more: each further actor takes seconds to start."""


def extended_to(trials: int, swept: Swept) -> dict[str, Any]:
    return dict(swept.values) | {"budget": {"trials": trials}} | ONE_ACTOR


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def swept(local_ray: None, tmp_path_factory: pytest.TempPathFactory, cache: Path) -> Swept:
    return run(tiny(tmp_path_factory.mktemp("runs") / "tiny", cache))


@pytest.fixture(scope="module")
def again(swept: Swept) -> Swept:
    return run(swept.values)


@pytest.fixture(scope="module")
def extended(again: Swept) -> Swept:
    return run(extended_to(TRIALS + 2, again))


@pytest.fixture(scope="module")
def renewed(extended: Swept) -> Swept:
    drawn = {"seed": 1, "search": {"portfolio": "none"}}
    return run(extended_to(2, extended) | drawn, fresh=True)


def runs_of(swept: Swept) -> tuple[Run, list[Run]]:
    """The sweep's run and its trials' runs."""
    client = mlflow.MlflowClient(tracking_uri=swept.tracking_uri)
    experiment = client.get_experiment_by_name("prunetune")
    found = client.search_runs([experiment.experiment_id], max_results=1000)
    (parent,) = [run for run in found if "mlflow.parentRunId" not in run.data.tags]
    return parent, [run for run in found if run is not parent]


def models_of(swept: Swept) -> list[LoggedModel]:
    """The answer to "which models are on the frontier, by compute"."""
    client = mlflow.MlflowClient(tracking_uri=swept.tracking_uri)
    experiment = client.get_experiment_by_name("prunetune")
    found: list[LoggedModel] = client.search_logged_models(
        experiment_ids=[experiment.experiment_id],
        filter_string="tags.frontier = 'true'",
        order_by=[{"field_name": "metrics.train_flops"}],
    )
    return found


def metrics_of(model: LoggedModel) -> dict[str, float]:
    return {metric.key: metric.value for metric in model.metrics}


def points(frontier: Frontier) -> list[tuple[str, int, float, float]]:
    return [(p.trial_id, p.rung, p.train_flops, p.val_error) for p in frontier.points]


def study_of(swept: Swept) -> list[optuna.trial.FrozenTrial]:
    storage = JournalStorage(JournalFileBackend(str(swept.folder / "optuna.journal")))
    (name,) = optuna.get_all_study_names(storage)
    return optuna.load_study(study_name=name, storage=storage).get_trials()


# one sweep


def test_every_trial_has_ended_and_is_measured(swept: Swept) -> None:
    assert [trial["number"] for trial in swept.trials] == list(range(TRIALS))
    states = {trial["state"] for trial in swept.trials}
    assert states <= {"complete", "halved", "infeasible", "diverged"}, "none has failed"
    assert len(swept.measurements) >= TRIALS / 2
    assert all(row["train_flops"] <= row["recipe.target_flops"] for row in swept.measurements)
    keys = [(row["trial_id"], row["rung"]) for row in swept.measurements]
    assert len(keys) == len(set(keys))


def test_the_folder_has_what_it_should_and_nothing_else(swept: Swept) -> None:
    assert {path.name for path in swept.folder.iterdir()} == {
        "sweep.yaml",
        "journal",
        "measurements",
        "trials.parquet",
        "optuna.journal",
        "mlflow.db",
        "artifacts",
        "trials",
        "report.html",
        "frontier.png",
        ".driver.lock",
    }
    assert yaml.safe_load((swept.folder / "sweep.yaml").read_text())["name"] == "tiny"


def test_checkpoints_are_kept_for_the_frontier_and_what_may_be_raised(swept: Swept) -> None:
    kept = {
        (trial.name, int(rung.name.removeprefix("rung-")))
        for trial in (swept.folder / "trials").iterdir()
        for rung in trial.iterdir()
    }
    frontier = {(p.trial_id, p.rung) for p in swept.frontier.points}
    trials = Ledger(Journal(disk(swept.folder), "journal")).trials()
    ends = [(trial.trial_id, trial.measurements[-1]) for trial in trials if trial.measurements]
    raisable = {(trial_id, end.rung) for trial_id, end in ends if end.trunk_flops > 0}
    assert frontier <= kept <= frontier | raisable


def test_the_frontier_is_what_the_table_says_and_is_tested(swept: Swept) -> None:
    assert points(frontier_of(swept.measurements)) == points(swept.frontier)
    assert all(0 <= p.test_error <= 1 for p in swept.frontier.points if p.test_error is not None)
    assert all(p.test_error is not None for p in swept.frontier.points)


def test_mlflow_answers_with_the_frontier_in_order_of_compute(swept: Swept) -> None:
    models = [metrics_of(model) for model in models_of(swept)]
    assert [(m["train_flops"], m["val_error"], m["test_error"]) for m in models] == [
        (p.train_flops, p.val_error, p.test_error) for p in swept.frontier.points
    ]


def test_every_trial_is_a_run_below_the_sweeps_with_its_curve(swept: Swept) -> None:
    parent, trials = runs_of(swept)
    assert parent.info.status == "FINISHED"
    assert len(trials) == TRIALS
    assert {run.data.tags["mlflow.parentRunId"] for run in trials} == {parent.info.run_id}
    recipes = {run.data.tags[TRIAL_ID_TAG]: run.data.params for run in trials}
    for row in swept.measurements:
        logged = float(recipes[row["trial_id"]]["learning_rate"])
        assert logged == pytest.approx(row["recipe.learning_rate"])


def test_a_frontier_model_predicts_when_mlflow_loads_it(
    swept: Swept, monkeypatch: pytest.MonkeyPatch
) -> None:
    *_, best = models_of(swept)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", swept.tracking_uri)
    model = mlflow.pyfunc.load_model(f"models:/{best.model_id}")
    images = np.random.default_rng(0).integers(0, 256, (3, 16, 16, 3), dtype=np.uint8)
    probabilities = model.predict(images)
    assert probabilities.shape == (3, 10)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1.0, rtol=1e-5)


def test_the_study_has_every_trial_and_none_running(swept: Swept) -> None:
    study = study_of(swept)
    assert len(study) == TRIALS
    assert all(trial.state in (StudyState.COMPLETE, StudyState.FAIL) for trial in study)


def test_the_report_stands_alone(swept: Swept) -> None:
    page = (swept.folder / "report.html").read_text()
    assert "<script src" not in page
    assert "http://" not in page.replace("http://www.w3.org", "")


def test_the_cheapest_model_is_exported_and_loads_in_another_process(
    swept: Swept, tmp_path: Path
) -> None:
    cheapest = swept.frontier.points[0]
    flops = f"{cheapest.train_flops * 1.0001}"
    out = tmp_path / "model"
    prunetune("export", str(swept.folder), "--max-flops", flops, "-o", str(out))
    model = load_exported(out)
    assert model.measurement.val_error == cheapest.val_error
    assert model.recipe.flat() == dict(cheapest.recipe)
    assert "val" in (out / "README.md").read_text()
    images = np.zeros((2, 16, 16, 3), dtype=np.uint8)
    assert model.predict(images).shape == (2, 10)
    with pytest.raises(InputError, match="no empty folder"):
        export_point(str(swept.folder), out, choose=lambda found: found.points[0])


# its later life


def test_the_same_command_again_runs_no_trial(swept: Swept, again: Swept) -> None:
    assert again.trials == swept.trials
    assert again.measurements == swept.measurements
    assert again.frontier == swept.frontier
    assert again.happened == swept.happened
    assert len(runs_of(again)[1]) == TRIALS
    assert len(models_of(again)) == len(swept.frontier.points)


def settled(swept: Swept) -> dict[tuple[str, int], dict[str, Any]]:
    """The measurements without what later ones may change: tests, expectations, steps kept."""
    changing = dict.fromkeys(("test_error", "expected_error", "confirming_error", "trunk_flops"))
    return {(row["trial_id"], row["rung"]): row | changing for row in swept.measurements}


def test_more_trials_extend_it_and_leave_the_old_ones_alone(again: Swept, extended: Swept) -> None:
    assert extended.trials[:TRIALS] == again.trials
    assert len(extended.trials) == TRIALS + 2
    assert settled(again).items() <= settled(extended).items()
    assert [metrics_of(model)["train_flops"] for model in models_of(extended)] == [
        p.train_flops for p in extended.frontier.points
    ]
    assert len(study_of(extended)) == TRIALS + 2


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"seed": 9}, "was started with another seed"),
        ({"task": {"source": "digits", "resolution": 24}}, "was started with another task"),
        ({"backbone": {"model": "test_vit"}}, "was started with another backbone"),
        ({"space": {"ranges": {}}}, "was started with another space"),
        ({"rungs": {"min_flops": 1e9, "max_flops": 1e10}}, "only rungs.max_flops may be raised"),
    ],
)
def test_a_sweep_is_not_gone_on_with_under_another_config(
    extended: Swept, changed: dict[str, Any], sentence: str
) -> None:
    before = (extended.folder / "sweep.yaml").read_bytes()
    with pytest.raises(InputError, match=sentence):
        run(dict(extended.values) | changed)
    assert (extended.folder / "sweep.yaml").read_bytes() == before


def test_a_bad_config_deletes_nothing_even_when_it_is_to_begin_anew(extended: Swept) -> None:
    bad = dict(extended.values) | {"backbone": {"model": "test_resnet", "weights": "/no/file"}}
    with pytest.raises(InputError, match="/no/file"):
        run(bad, fresh=True)
    assert rows(read_trials(extended.folder)) == extended.trials


def test_beginning_anew_leaves_nothing_of_the_old_sweep(extended: Swept, renewed: Swept) -> None:
    assert len(renewed.trials) == 2
    old = {trial["trial_id"] for trial in extended.trials}
    assert not old & {trial["trial_id"] for trial in renewed.trials}
    parent, trials = runs_of(renewed)
    assert len(trials) == 2
    assert parent.info.status == "FINISHED"
    assert len(models_of(renewed)) == len(renewed.frontier.points)
    assert len(study_of(renewed)) == 2


# interruptions


def prunetune(*arguments: str) -> str:
    """The output of a command."""
    done = subprocess.run(
        [sys.executable, "-m", "orchestrator", *arguments],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    )
    return done.stdout


def test_a_full_disk_ends_the_sweep_as_such_and_what_was_written_stays(
    local_ray: None, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = tiny(tmp_path / "full", cache) | {"budget": {"trials": 3}} | ONE_ACTOR
    append = Journal.append

    def append_until_full(journal: Journal, event: Mapping[str, Any]) -> None:
        if event["event"] == "measured":
            raise OSError(errno.ENOSPC, "No space left on device")
        append(journal, event)

    with monkeypatch.context() as patch:
        patch.setattr(Journal, "append", append_until_full)
        with pytest.raises(OSError, match="No space left"):
            run(values)
    written = rows(read_trials(tmp_path / "full"))
    assert {trial["state"] for trial in written} == {"running"}


def test_an_interrupted_sweep_says_so_and_leaves_the_rest_to_the_same_command(
    tmp_path: Path, cache: Path
) -> None:
    values = tiny(tmp_path / "stopped", cache) | {"budget": {"trials": 1000}} | ONE_ACTOR
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump(values))
    driver = subprocess.Popen(
        [sys.executable, "-m", "orchestrator", "sweep", str(config)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    wait_for_measurement(tmp_path / "stopped", driver)
    os.killpg(driver.pid, signal.SIGINT)  # what Ctrl-C does: it reaches Ray's processes too
    _, stderr = driver.communicate(timeout=LIMIT_SECONDS)
    assert driver.returncode == 130, stderr
    assert "stopped; the same command resumes" in stderr
    assert "Traceback" not in stderr

    begun = rows(read_trials(tmp_path / "stopped"))
    assert len(begun) < 1000
    states = {trial["state"] for trial in begun}
    assert "failed" not in states, "who was stopped is resumed by the same command"
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path / 'stopped' / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("prunetune")
    shown = client.search_runs([experiment.experiment_id], "tags.`prunetune.kind` = 'sweep'")
    assert [run.info.status for run in shown] == ["KILLED"]


def wait_for_measurement(folder: Path, driver: "subprocess.Popen[str]") -> None:
    def is_measured() -> bool:
        assert driver.poll() is None, driver.communicate()
        return any(event["event"] == "measured" for event in events_of(folder))

    try:
        wait_until(is_measured, what="a trial is measured")
    except AssertionError:
        driver.kill()
        raise
