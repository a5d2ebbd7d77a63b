"""Views of a sweep for MLflow: pure functions from the ledger's records to plain data.

Nothing here talks to MLflow, so that all that is shown can be read, and tested, in one place.

| MLflow | holds | found by the tags |
|---|---|---|
| parent run | the config as params, the sweep's totals over time | `prunetune.kind = 'sweep'` |
| nested run | a trial: its recipe as params, its curve as metrics | `prunetune.trial_id` |
| logged model | a frontier point: its recipe, its measurement, its files | `frontier = 'true'` |

All carry `prunetune.sweep_id`. A model that leaves the frontier only loses its tag `frontier`.
"""

import json
import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from analysis.frontier import Frontier, FrontierPoint
from analysis.table import recipe_columns
from orchestrator.store.ledger import TrialRecord, TrialState
from trainables.measurement import Measurement

SWEEP_ID_TAG = "prunetune.sweep_id"
KIND_TAG = "prunetune.kind"
TRIAL_ID_TAG = "prunetune.trial_id"
RUNG_TAG = "prunetune.rung"
CHANGED_TAG_PREFIX = "prunetune.changed."
FRONTIER_TAG = "frontier"
FRONTIER_TABLE = "frontier.json"

MAX_TEXT_LENGTH = 1000
"""Characters of a param or a tag. MLflow takes 6000, but refuses a batch of more than 1 MB: at
this length a full one (100 params, 1000 metrics) stays below that even when every character is
escaped into six bytes."""
MAX_NAME_LENGTH = 250
"""MLflow's limit on the name of a param, a metric or a tag."""

STATUSES: Mapping[TrialState, str] = {
    TrialState.RUNNING: "RUNNING",
    TrialState.PAUSED: "SCHEDULED",  # it may go on
    TrialState.COMPLETE: "FINISHED",
    TrialState.HALVED: "FINISHED",  # stopped on purpose, and its curve counts in full
    TrialState.DIVERGED: "FAILED",
    TrialState.FAILED: "FAILED",
    TrialState.INFEASIBLE: "KILLED",  # refused before it trained; FAILED is left for what broke
}
"""MLflow's run status for each state of a trial. It is coarser; the tag has the state itself."""


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """A sweep at one moment, as the tracker is to show it."""

    sweep_id: str
    """Stays the same when the sweep is resumed or extended."""
    name: str
    """The sweep's name, which is the parent run's."""
    config: Mapping[str, Any]
    """The resolved config, in JSON types."""
    trials: tuple[TrialRecord, ...]
    """Every trial suggested so far."""
    frontier: Frontier
    """The frontier of these trials' measurements."""
    sweep_flops: float
    """Training FLOPs of all trials so far, repeats included."""
    hypervolume: float
    """The frontier's hypervolume, over log10 FLOPs × error."""
    elapsed_seconds: float
    """Wall time the sweep has run."""
    finished: bool
    """True if the budget is spent. Trials that the wall time ended pause until it is raised."""
    interrupted: bool = False
    """True if it is unfinished and its driver has left; a resumed sweep goes on."""

    @property
    def idle(self) -> bool:
        """True if no driver is at work, so that no trial runs."""
        return self.finished or self.interrupted

    def __post_init__(self) -> None:
        if "'" in self.sweep_id:
            raise ValueError(
                f"sweep_id={self.sweep_id!r} must not hold a single quote; MLflow's searches "
                "cannot find it."
            )
        curves = {t.trial_id: {m.rung for m in t.measurements} for t in self.trials}
        for point in self.frontier.points:
            if point.rung not in curves.get(point.trial_id, ()):
                raise ValueError(
                    f"The frontier has trial {point.trial_id} at rung {point.rung}, which the "
                    "trials do not; take both from the ledger at the same moment."
                )


@dataclass(frozen=True, kw_only=True)
class MetricValue:
    """One value of a metric."""

    key: str
    value: float
    """Finite."""
    step: int
    timestamp_ms: int


@dataclass(frozen=True, kw_only=True)
class RunView:
    """A run as it shall be."""

    name: str
    status: str
    """One of MLflow's run statuses."""
    start_ms: int | None
    """Unix milliseconds; `None` lets MLflow take the moment of creation."""
    end_ms: int | None
    """Unix milliseconds; `None` for a run that has not ended."""
    tags: Mapping[str, str]
    params: Mapping[str, str]
    metrics: tuple[MetricValue, ...]
    """Ascending in step."""


@dataclass(frozen=True, kw_only=True)
class ModelView:
    """A logged model as it shall be; the tag `frontier` is set when all of it is there."""

    name: str
    tags: Mapping[str, str]
    params: Mapping[str, str]
    metrics: tuple[MetricValue, ...]


def sweep_view(snapshot: Snapshot, *, now_ms: int) -> RunView:
    """Returns the parent run, whose metrics are the totals now, at the step `elapsed_seconds`."""
    states = Counter(trial.state for trial in snapshot.trials)
    totals = {
        "sweep_flops": snapshot.sweep_flops,
        "hypervolume": snapshot.hypervolume,
        "frontier_points": len(snapshot.frontier.points),
        "frontier_confirmed": snapshot.frontier.confirmed,
        **{f"trials_{state}": states[state] for state in TrialState},
    }
    step = int(snapshot.elapsed_seconds)
    unfinished = "KILLED" if snapshot.interrupted else "RUNNING"
    status = "FINISHED" if snapshot.finished else unfinished
    return RunView(
        name=snapshot.name,
        status=status,
        start_ms=None,
        end_ms=None if status == "RUNNING" else now_ms,
        tags={
            SWEEP_ID_TAG: snapshot.sweep_id,
            KIND_TAG: "sweep",
            # lets the UI and mlflow.load_table show the artifact as a table
            "mlflow.loggedArtifacts": json.dumps([{"path": FRONTIER_TABLE, "type": "table"}]),
        },
        params=_params(dict(_flat(snapshot.config))),
        metrics=tuple(_metrics(totals, step=step, timestamp_ms=now_ms)),
    )


def trial_view(
    trial: TrialRecord, *, sweep_id: str, parent_run_id: str, on_frontier: bool, paused: bool
) -> RunView:
    """Returns a trial's run, nested under the parent: one step a rung.

    Its params are the recipe's fields and, where the space has another name for what was sampled
    (`adamw_rate` for `learning_rate`), that too: both names find the trial.

    A `paused` one, unfinished in a sweep that is idle, is SCHEDULED: it goes on when that does.
    """
    tags = {
        "mlflow.parentRunId": parent_run_id,
        SWEEP_ID_TAG: sweep_id,
        KIND_TAG: "trial",
        TRIAL_ID_TAG: trial.trial_id,
        "prunetune.number": str(trial.number),
        "prunetune.recipe_id": trial.recipe.recipe_id,
        "prunetune.attempt": str(trial.attempt),
        "prunetune.state": trial.state.value,
    }
    if trial.reason is not None:
        tags["prunetune.reason"] = _shortened(trial.reason)
    if trial.confirms is not None:
        tags["prunetune.confirms"] = trial.confirms
    if trial.start is not None:
        tags["prunetune.start"] = str(trial.start)
    if on_frontier:
        tags[FRONTIER_TAG] = "true"
    return RunView(
        name=trial.trial_id,
        status="SCHEDULED" if paused else STATUSES[trial.state],
        start_ms=_milliseconds(trial.suggested_at),
        end_ms=None if trial.finished_at is None else _milliseconds(trial.finished_at),
        tags=tags,
        params=_params({**trial.params, **trial.recipe.flat(), "seed": trial.seed}),
        metrics=tuple(
            metric for measurement in trial.measurements for metric in _measured(trial, measurement)
        ),
    )


def model_view(point: FrontierPoint, trial: TrialRecord, *, sweep_id: str) -> ModelView:
    """Returns a frontier point's logged model, with its recipe and its measurement."""
    return ModelView(
        # a model's name may not hold these characters
        name=re.sub(r"[/:.%\"']", "-", f"{point.trial_id}-rung-{point.rung}"),
        tags={
            SWEEP_ID_TAG: sweep_id,
            TRIAL_ID_TAG: point.trial_id,
            RUNG_TAG: str(point.rung),
            "prunetune.recipe_id": trial.recipe.recipe_id,
        },
        params=_params({**point.recipe, "seed": trial.seed}),
        metrics=tuple(_measured(trial, point.measurement)),
    )


def frontier_table(frontier: Frontier) -> dict[str, Any]:
    """Returns the frontier as `{"columns": [...], "data": [[...], ...]}`, a table to MLflow.

    A recipe's names differ from method to method: a column that a point lacks holds `None`.
    """
    rows = [_row(point) for point in frontier.points]
    columns = list(dict.fromkeys(name for row in rows for name in row))
    return {"columns": columns, "data": [[row.get(name) for name in columns] for row in rows]}


def _row(point: FrontierPoint) -> dict[str, Any]:
    measured = point.measurement
    row = {
        "trial_id": point.trial_id,
        "rung": measured.rung,
        "train_flops": measured.train_flops,
        "val_error": measured.val_error,
        "expected_error": point.expected_error,
        "confirming_error": point.confirming_error,
        "test_error": measured.test_error,
        "inference_flops": measured.inference_flops,
        "params": measured.params,
        "updated_params": measured.updated_params,
    }
    return row | recipe_columns(point.recipe)


def _measured(trial: TrialRecord, measurement: Measurement) -> Iterator[MetricValue]:
    """Returns the measurement's known fields, at the step `rung`.

    The time is computed from the record, not read from a clock: MLflow takes a value logged twice
    at the same time for one, so that anything may be logged again after a crash.
    """
    values = measurement.to_dict()
    step = values.pop("rung")
    at = _milliseconds(trial.suggested_at + measurement.train_seconds)
    yield from _metrics(values, step=step, timestamp_ms=at)


def _metrics(
    values: Mapping[str, float | None], *, step: int, timestamp_ms: int
) -> Iterator[MetricValue]:
    """Leaves out what is not finite: MLflow would store NaN as 0 and infinity as 1.8e308."""
    for key, value in values.items():
        if value is not None and math.isfinite(value):
            yield MetricValue(key=key, value=float(value), step=step, timestamp_ms=timestamp_ms)


def _flat(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Flattens `{"a": {"b": 1}}` to `("a.b", 1)`; lists stay whole."""
    for key, value in config.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _params(values: Mapping[str, Any]) -> dict[str, str]:
    """Returns names and texts that MLflow accepts; strings as they are, all else as JSON."""
    return {
        re.sub(r"[^\w\-. ]", "_", name)[:MAX_NAME_LENGTH]: _shortened(
            value if isinstance(value, str) else json.dumps(value)
        )
        for name, value in values.items()
    }


def _shortened(text: str) -> str:
    return text if len(text) <= MAX_TEXT_LENGTH else text[: MAX_TEXT_LENGTH - 1] + "…"


def _milliseconds(seconds: float) -> int:
    return int(seconds * 1000)
