"""The mirror of one sweep: what MLflow is known to hold, and the calls that bring it into line."""

import platform
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from mlflow import MlflowClient
from mlflow.entities import LoggedModel, LoggedModelStatus, Metric, Param, Run, RunTag
from mlflow.models import Model, ModelSignature
from mlflow.types import Schema, TensorSpec

from analysis.frontier import Frontier
from orchestrator.store.ledger import TrialRecord
from orchestrator.tracking.views import (
    CHANGED_TAG_PREFIX,
    FRONTIER_TABLE,
    FRONTIER_TAG,
    KIND_TAG,
    MAX_NAME_LENGTH,
    RUNG_TAG,
    SWEEP_ID_TAG,
    TRIAL_ID_TAG,
    MetricValue,
    ModelView,
    RunView,
    Snapshot,
    frontier_table,
    model_view,
    sweep_view,
    trial_view,
)

PointKey = tuple[str, int]
"""A frontier point: trial id and rung."""

_PAGE = 1000
"""Runs or models a search returns at a time."""


@dataclass(kw_only=True)
class _KnownRun:
    """A run as it is known to be in MLflow."""

    run_id: str
    status: str = "RUNNING"
    tags: dict[str, str] = field(default_factory=dict)
    params: dict[str, str] = field(default_factory=dict)
    newest: dict[str, float] = field(default_factory=dict)
    """Each metric's last value, which is all that a search of runs returns."""
    metrics: dict[tuple[str, int], float] = field(default_factory=dict)
    """Value by metric and step, as far as they are known to be there."""

    @classmethod
    def read(cls, run: Run) -> "_KnownRun":
        return cls(
            run_id=run.info.run_id,
            status=run.info.status,
            tags=dict(run.data.tags),
            params=dict(run.data.params),
            newest=dict(run.data.metrics),
        )


@dataclass(kw_only=True)
class _KnownModel:
    """A logged model as it is known to be in MLflow."""

    model_id: str
    ready: bool = False
    """True once its files are there."""
    tags: dict[str, str] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)

    @classmethod
    def read(cls, model: LoggedModel) -> "_KnownModel":
        return cls(
            model_id=model.model_id,
            ready=model.status == LoggedModelStatus.READY,
            tags=dict(model.tags),
            metrics={metric.key: metric.value for metric in model.metrics or ()},
        )


class Mirror:
    """One sweep in MLflow.

    Construction reads what is there and removes doubles and orphans. After an exception in any
    method nothing known may be trusted (a call may have arrived although its answer did not):
    drop the mirror and construct another.
    """

    def __init__(
        self, client: MlflowClient, *, experiment_id: str, snapshot: Snapshot, loader_module: str
    ) -> None:
        self._client = client
        self._experiment_id = experiment_id
        self._sweep_id = snapshot.sweep_id
        self._loader_module = loader_module
        self._config_logged = False
        self._logged_frontier: Frontier | None = None
        self._shown: dict[str, tuple[TrialRecord, bool, bool]] = {}
        self._sweep = self._read_sweep()
        self._trials = self._read_trials({trial.trial_id for trial in snapshot.trials})
        self._models = self._read_models()

    def show(self, snapshot: Snapshot) -> None:
        """Makes MLflow equal to the snapshot; a part that is already equal costs no call."""
        sweep = sweep_view(snapshot, now_ms=_now_ms())
        parent = self._show_sweep(sweep)
        on_frontier = {point.trial_id for point in snapshot.frontier.points}
        for trial in snapshot.trials:
            self._show_trial(
                trial, parent, on_frontier=trial.trial_id in on_frontier, idle=snapshot.idle
            )
        self._show_models(snapshot)
        self._show_documents(snapshot, parent)
        # last, so that a run that MLflow shows as finished is whole
        self._show_status(parent, sweep)

    def upload_file(self, path: Path) -> None:
        """Uploads a file to the parent run, in place of one of the same name."""
        if self._sweep is None:
            raise RuntimeError("The sweep has no run yet; show a snapshot before its files.")
        self._client.log_artifact(self._sweep.run_id, str(path))

    def upload_model(self, key: PointKey, folder: Path) -> bool:
        """Uploads the files of a frontier point's logged model, once; `False` if it has none yet.

        The model then loads by `mlflow.pyfunc.load_model("models:/<model_id>")` through
        `loader_module`, which finds the folder's files and unpickles nothing.
        """
        model = self._models.get(key)
        if model is None:
            return False
        if model.ready:
            return True
        with tempfile.TemporaryDirectory() as scratch:
            description = Model(
                run_id=self._trials[key[0]].run_id,
                model_id=model.model_id,
                signature=ModelSignature(
                    inputs=Schema([TensorSpec(np.dtype("uint8"), (-1, -1, -1, 3))]),
                    outputs=Schema([TensorSpec(np.dtype("float32"), (-1, -1))]),
                ),
            )
            # what mlflow.pyfunc.add_to_model does, without importing MLflow's agents for it
            description.add_flavor(
                "python_function",
                loader_module=self._loader_module,
                python_version=platform.python_version(),
                data="data",
            )
            description_path = Path(scratch) / "MLmodel"
            description.save(str(description_path))
            self._client.log_model_artifacts(model.model_id, str(folder), "data")
            self._client.log_model_artifact(model.model_id, str(description_path))
        self._client.finalize_logged_model(model.model_id, LoggedModelStatus.READY)
        model.ready = True
        return True

    def _read_sweep(self) -> _KnownRun | None:
        runs = [_KnownRun.read(run) for run in self._runs("sweep")]
        for double in runs[1:]:
            self._client.delete_run(double.run_id)
        return runs[0] if runs else None

    def _read_trials(self, trial_ids: set[str]) -> dict[str, _KnownRun]:
        """Returns the runs of these trials; deletes others of this sweep, and second ones."""
        kept: dict[str, _KnownRun] = {}
        for run in self._runs("trial"):
            trial_id = run.data.tags.get(TRIAL_ID_TAG)
            if trial_id not in trial_ids or trial_id in kept:
                self._client.delete_run(run.info.run_id)
            else:
                kept[trial_id] = _KnownRun.read(run)
        return kept

    def _read_models(self) -> dict[PointKey, _KnownModel]:
        """Returns one model a point whose source is a run that was kept; deletes the others."""
        source = {trial_id: run.run_id for trial_id, run in self._trials.items()}
        kept: dict[PointKey, _KnownModel] = {}
        for model in self._logged_models():
            trial_id = model.tags[TRIAL_ID_TAG]
            key = (trial_id, int(model.tags[RUNG_TAG]))
            if key in kept or source.get(trial_id) != model.source_run_id:
                self._client.delete_logged_model(model.model_id)
            else:
                kept[key] = _KnownModel.read(model)
        return kept

    def _runs(self, kind: str) -> list[Run]:
        """Returns this sweep's runs of one kind, the oldest first and the fullest of equals."""
        wanted = f"tags.`{SWEEP_ID_TAG}` = '{self._sweep_id}' and tags.`{KIND_TAG}` = '{kind}'"
        runs: list[Run] = _all_pages(
            lambda token: self._client.search_runs(
                [self._experiment_id], wanted, max_results=_PAGE, page_token=token
            )
        )
        return sorted(runs, key=lambda r: (r.info.start_time, -len(r.data.metrics), r.info.run_id))

    def _logged_models(self) -> list[LoggedModel]:
        """Returns this sweep's logged models, oldest first."""
        wanted = f"tags.`{SWEEP_ID_TAG}` = '{self._sweep_id}'"
        models: list[LoggedModel] = _all_pages(
            lambda token: self._client.search_logged_models(
                [self._experiment_id], wanted, max_results=_PAGE, page_token=token
            )
        )
        return sorted(models, key=lambda m: (m.creation_timestamp, m.model_id))

    def _show_sweep(self, view: RunView) -> _KnownRun:
        if self._sweep is None:
            self._sweep = self._create_run(view)
        known = self._sweep
        if all(known.newest.get(metric.key) == metric.value for metric in view.metrics):
            view = replace(view, metrics=())  # totals are logged when they change, not each tick
        self._log(known, view)
        known.newest |= {metric.key: metric.value for metric in view.metrics}
        return known

    def _show_trial(
        self, trial: TrialRecord, parent: _KnownRun, *, on_frontier: bool, idle: bool
    ) -> None:
        paused = idle and not trial.finished
        # records are immutable, so one that is the same as last time needs no look at its curve
        if self._shown.get(trial.trial_id) == (trial, on_frontier, paused):
            return
        view = trial_view(
            trial,
            sweep_id=self._sweep_id,
            parent_run_id=parent.run_id,
            on_frontier=on_frontier,
            paused=paused,
        )
        known = self._trials.get(trial.trial_id)
        if known is None:
            known = self._trials[trial.trial_id] = self._create_run(view)
        elif trial.trial_id not in self._shown:
            self._read_curve(known, view.metrics)
        self._log(known, view)
        self._show_status(known, view)
        self._shown[trial.trial_id] = (trial, on_frontier, paused)

    def _read_curve(self, known: _KnownRun, metrics: Iterable[MetricValue]) -> None:
        """Learns which values of a curve are there, without a call in the usual case that all are.

        A rung is logged in one transaction and `train_flops` grows from rung to rung, so a run
        whose newest values are the curve's newest is whole. Only test errors come out of order.
        """
        curve = {(m.key, m.step): m.value for m in metrics if m.key != "test_error"}
        newest = {key: value for (key, _), value in curve.items()}
        whole = all(known.newest.get(key) == value for key, value in newest.items())
        known.metrics = curve if whole else {}
        for key in known.newest.keys() & ({"test_error"} if whole else known.newest.keys()):
            history = self._client.get_metric_history(known.run_id, key)
            for metric in sorted(history, key=lambda m: (m.timestamp, m.value)):
                known.metrics[key, metric.step] = metric.value

    def _create_run(self, view: RunView) -> _KnownRun:
        run = self._client.create_run(
            self._experiment_id,
            start_time=view.start_ms,
            tags=dict(view.tags),
            run_name=view.name,
        )
        return _KnownRun(run_id=run.info.run_id, tags=dict(view.tags))

    def _log(self, known: _KnownRun, view: RunView) -> None:
        """Adds all that the run lacks as one batch (the client cuts it at MLflow's limits)."""
        # MLflow's params never change; what an extended sweep's config changes becomes a tag
        changed = {
            (CHANGED_TAG_PREFIX + name)[:MAX_NAME_LENGTH]: value
            for name, value in view.params.items()
            if known.params.get(name, value) != value
        }
        wanted = {**view.tags, **changed}
        tags = {key: value for key, value in wanted.items() if known.tags.get(key) != value}
        params = {key: value for key, value in view.params.items() if key not in known.params}
        metrics = [
            # of two values at one step MLflow shows the later, so one that changed is of now
            replace(m, timestamp_ms=_now_ms()) if (m.key, m.step) in known.metrics else m
            for m in view.metrics
            if known.metrics.get((m.key, m.step)) != m.value
        ]
        self._client.log_batch(  # nothing to log is no call
            known.run_id,
            metrics=[Metric(m.key, m.value, m.timestamp_ms, m.step) for m in metrics],
            params=[Param(key, value) for key, value in params.items()],
            tags=[RunTag(key, value) for key, value in tags.items()],
            synchronous=True,
        )
        known.tags |= tags
        known.params |= params
        known.metrics |= {(m.key, m.step): m.value for m in metrics}
        for key in [key for key in known.tags if _is_ours(key) and key not in wanted]:
            self._client.delete_tag(known.run_id, key)
            del known.tags[key]

    def _show_status(self, known: _KnownRun, view: RunView) -> None:
        if known.status == view.status:
            return
        if view.status in ("RUNNING", "SCHEDULED"):  # it is not over, or no longer
            self._client.update_run(known.run_id, status=view.status)
        else:
            self._client.set_terminated(known.run_id, view.status, view.end_ms)
        known.status = view.status

    def _show_models(self, snapshot: Snapshot) -> None:
        trials = {trial.trial_id: trial for trial in snapshot.trials}
        points = {(point.trial_id, point.rung): point for point in snapshot.frontier.points}
        for key, point in points.items():
            self._show_model(key, model_view(point, trials[key[0]], sweep_id=self._sweep_id))
        for key, model in self._models.items():
            if key not in points and FRONTIER_TAG in model.tags:
                self._client.delete_logged_model_tag(model.model_id, FRONTIER_TAG)
                del model.tags[FRONTIER_TAG]

    def _show_model(self, key: PointKey, view: ModelView) -> None:
        source_run_id = self._trials[key[0]].run_id
        known = self._models.get(key)
        if known is not None and any(
            known.metrics.get(m.key, m.value) != m.value for m in view.metrics
        ):
            # measured again with another result; MLflow would find the model by both
            self._client.delete_logged_model(known.model_id)
            del self._models[key]
            known = None
        if known is None:
            model = self._client.create_logged_model(
                self._experiment_id,
                name=view.name,
                source_run_id=source_run_id,
                tags=dict(view.tags),
                params=dict(view.params),
            )
            known = self._models[key] = _KnownModel(model_id=model.model_id, tags=dict(view.tags))
        metrics = [m for m in view.metrics if m.key not in known.metrics]
        self._client.log_batch(
            source_run_id,
            metrics=[
                Metric(m.key, m.value, m.timestamp_ms, m.step, model_id=known.model_id)
                for m in metrics
            ],
            synchronous=True,
        )
        known.metrics |= {m.key: m.value for m in metrics}
        if FRONTIER_TAG not in known.tags:  # last, so that a model found by it is whole
            self._client.set_logged_model_tags(known.model_id, {FRONTIER_TAG: "true"})
            known.tags[FRONTIER_TAG] = "true"

    def _show_documents(self, snapshot: Snapshot, parent: _KnownRun) -> None:
        """Logs the config once, and the frontier's table whenever it has changed."""
        if not self._config_logged:
            self._client.log_dict(parent.run_id, dict(snapshot.config), "config.json")
            self._config_logged = True
        if self._logged_frontier != snapshot.frontier:
            table = frontier_table(snapshot.frontier)
            self._client.log_dict(parent.run_id, table, FRONTIER_TABLE)
            self._logged_frontier = snapshot.frontier


def _all_pages(search: Callable[[str | None], Any]) -> list[Any]:
    """Returns everything that `search(page_token)` finds; it returns MLflow's `PagedList`."""
    page = search(None)
    found = list(page)
    while page.token:
        page = search(page.token)
        found += page
    return found


def _is_ours(tag: str) -> bool:
    return tag == FRONTIER_TAG or tag.startswith("prunetune.")


def _now_ms() -> int:
    return int(time.time() * 1000)
