"""The tracker: keeps MLflow equal to the sweep, in a thread that never holds up the sweep.

There is no queue of events. Every few seconds the thread takes a snapshot of the sweep and makes
MLflow equal to it (`views` says what is shown, `mirror` finds the difference). A server that is
away costs nothing but time: the next snapshot that gets through holds everything that was missed,
and so does the first one after a killed driver is started again.
"""

import contextlib
import logging
import os
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from urllib.error import HTTPError, URLError
from urllib.request import urlopen

from mlflow import MlflowClient
from mlflow.entities import LifecycleStage
from mlflow.exceptions import MlflowException

from analysis.frontier import FrontierPoint
from orchestrator.config import TrackingConfig
from orchestrator.store.folder import SweepFolder
from orchestrator.tracking.mirror import Mirror, PointKey
from orchestrator.tracking.views import Snapshot
from trainables.errors import InputError, first_line

__all__ = ["Snapshot", "Tracker", "tracker_for"]

_log = logging.getLogger(__name__)

_PROBE_SECONDS = 5.0


class Tracker:
    """One sweep's view in MLflow.

    Only the driver has one; workers never talk to MLflow. The experiment is made when it is first
    needed. No method but `check` and `sync` waits for the server, or raises because it is away.
    """

    def __init__(
        self,
        *,
        uri: str,
        experiment: str,
        artifact_location: str | None,
        loader_module: str = "trainables.export",
        interval_seconds: float = 5.0,
        longest_pause_seconds: float = 60.0,
    ) -> None:
        """Connects to nothing yet. `uri` is `sqlite:///…/mlflow.db` or a server's `http(s)://…`.

        `artifact_location` is where a *new* experiment keeps its files: a folder next to an
        SQLite file, usually `None` (the server's own place) with a server. `loader_module` holds
        `_load_pyfunc(path)`, which turns the files of `attach_model` into a model. While the
        server is away the interval doubles from try to try, up to `longest_pause_seconds`.
        """
        if interval_seconds <= 0:
            raise ValueError(f"interval_seconds={interval_seconds!r} must be positive.")
        self._uri = uri
        self._experiment = experiment
        self._artifact_location = artifact_location
        self._loader_module = loader_module
        self._interval_seconds = interval_seconds
        self._longest_pause_seconds = longest_pause_seconds
        self._mirror: Mirror | None = None
        self._models: dict[PointKey, Path] = {}
        self._files: dict[str, Path] = {}
        self._syncing = threading.Lock()
        self._closing = threading.Event()
        self._deadline = float("inf")
        self._caught_up = False
        self._thread: threading.Thread | None = None

    def check(self) -> None:
        """Makes sure that a sweep can be tracked; creates the experiment if it is new.

        Raises `InputError` saying what is wrong with the server, the URI or the experiment.
        """
        try:
            self._connect()
        except (MlflowException, OSError) as error:
            raise InputError(
                f"MLflow at {self._uri} cannot be used ({first_line(error)}); start the server or "
                "correct tracking.uri, or leave it out to keep MLflow in the sweep's folder."
            ) from error

    def discard(self) -> None:
        """Begins the experiment anew: nothing that it held is shown any longer.

        MLflow keeps the names of deleted experiments, so the old one is renamed first.
        """
        client, experiment_id = self._connect()
        client.rename_experiment(experiment_id, f"{self._experiment}, discarded {experiment_id}")
        client.delete_experiment(experiment_id)
        self.check()

    def start(self, snapshot: Callable[[], Snapshot]) -> None:
        """Starts the thread that keeps MLflow equal to what `snapshot()` returns.

        `snapshot` is called in that thread, so it must be safe to call while the sweep runs.
        """
        if self._thread is not None:
            raise RuntimeError("The tracker was started already; a sweep has one thread for it.")
        self._thread = threading.Thread(
            target=self._work, args=(snapshot,), name="mlflow-tracker", daemon=True
        )
        self._thread.start()

    def sync(self, snapshot: Snapshot) -> None:
        """Makes MLflow equal to `snapshot` now; if nothing has changed, it costs no call.

        Raises the error that kept it from doing so. Nothing is lost then: the next sync reads
        what has arrived and adds the rest.
        """
        with self._syncing:
            # forgotten until all went well: after a failure it is unknown what has arrived
            mirror, self._mirror = self._mirror, None
            if mirror is None:
                client, experiment_id = self._connect()
                mirror = Mirror(
                    client,
                    experiment_id=experiment_id,
                    snapshot=snapshot,
                    loader_module=self._loader_module,
                )
            mirror.show(snapshot)
            for key, folder in list(self._models.items()):
                if mirror.upload_model(key, folder):
                    del self._models[key]
            for name, path in list(self._files.items()):
                mirror.upload_file(path)
                if self._files[name] == path:  # not attached anew meanwhile
                    del self._files[name]
            self._mirror = mirror

    def attach_model(self, point: FrontierPoint, folder: Path) -> None:
        """Has a later sync upload an exported model to its point's logged model, once.

        The folder must stay as it is until `close` returns `True`. The logged model is `READY`
        from then on; one without files is `PENDING`.
        """
        if not folder.is_dir():
            raise NotADirectoryError(f"{folder} is not a folder; export the model there first.")
        self._models[point.trial_id, point.rung] = folder

    def attach_files(self, *paths: Path) -> None:
        """Has a later sync upload files (the figure, the report) to the sweep's run.

        They replace files of the same name and must stay until `close` returns `True`.
        """
        for path in paths:
            if not path.is_file():
                raise FileNotFoundError(f"{path} is not a file; write it before it is attached.")
            self._files[path.name] = path

    def close(self, *, timeout_seconds: float) -> bool:
        """Shows the last snapshot and ends the thread.

        A sweep that is not finished is shown as interrupted. `False` if MLflow could not be
        brought up to date in time; nothing is lost, the sweep's next start catches up.
        """
        if self._thread is None:
            raise RuntimeError("The tracker was never started; call start(snapshot) first.")
        self._deadline = time.monotonic() + timeout_seconds
        self._closing.set()
        self._thread.join(timeout_seconds)
        return self._caught_up and not self._thread.is_alive()

    def _work(self, snapshot: Callable[[], Snapshot]) -> None:
        failures = 0
        while True:
            closing = self._closing.is_set()  # before the snapshot, so that the last one is last
            self._caught_up = self._attempt(snapshot, closing=closing, silent=failures > 0)
            if closing and (self._caught_up or time.monotonic() >= self._deadline):
                return
            if self._caught_up and failures:
                _log.info("MLflow at %s is back and up to date.", self._uri)
            failures = 0 if self._caught_up else failures + 1
            if closing:
                time.sleep(min(0.2, self._interval_seconds))
            else:
                self._closing.wait(self._pause_seconds(failures))

    def _pause_seconds(self, failures: int) -> float:
        if not failures:
            return self._interval_seconds
        doublings = min(failures, 16)  # far beyond any longest pause, and never an overflow
        return min(self._interval_seconds * 2.0**doublings, self._longest_pause_seconds)

    def _attempt(self, snapshot: Callable[[], Snapshot], *, closing: bool, silent: bool) -> bool:
        """Syncs once; a failure of any kind is a reason to try again, never to stop the sweep."""
        try:
            latest = snapshot()
            if closing and not latest.finished:
                latest = replace(latest, interrupted=True)
            self.sync(latest)
        except Exception as error:  # the thread must outlive any answer of a server
            if not silent:
                _log.warning(
                    "MLflow at %s is not up to date (%s); the sweep goes on and the tracker "
                    "tries again until it catches up.",
                    self._uri,
                    first_line(error),
                )
            return False
        return True

    def _connect(self) -> tuple[MlflowClient, str]:
        """Returns a client and the experiment's id; creates the experiment if there is none."""
        # MLflow prints two lines for every run that ends; a sweep has thousands
        os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
        _probe(self._uri)
        with _quiet_migration():
            client = MlflowClient(tracking_uri=self._uri)
            experiment = client.get_experiment_by_name(self._experiment)
            if experiment is None:
                return client, client.create_experiment(
                    self._experiment, artifact_location=self._artifact_location
                )
        if experiment.lifecycle_stage != LifecycleStage.ACTIVE:
            raise InputError(
                f"The MLflow experiment {self._experiment!r} was deleted; restore it with "
                f"`mlflow experiments restore -x {experiment.experiment_id}` or choose another "
                "tracking.experiment."
            )
        return client, experiment.experiment_id


def tracker_for(config: TrackingConfig, folder: SweepFolder) -> Tracker:
    """Returns the sweep's tracker: on the config's server, else on SQLite in the sweep's folder."""
    embedded = config.uri is None
    return Tracker(
        uri=config.uri or folder.tracking_uri,
        experiment=config.experiment or "prunetune",
        artifact_location=folder.artifacts.as_uri() if embedded else None,
    )


def _probe(uri: str) -> None:
    """Raises `URLError` at once if no server answers there; MLflow itself retries for minutes."""
    if not uri.startswith(("http://", "https://")):
        return
    try:
        with urlopen(f"{uri.rstrip('/')}/health", timeout=_PROBE_SECONDS):
            return
    except HTTPError as error:  # something answers; whether it is MLflow, MLflow's client will say
        error.close()
    except URLError as error:
        if not isinstance(error.reason, ssl.SSLError):  # MLflow has its own rules on certificates
            raise


@contextlib.contextmanager
def _quiet_migration() -> Iterator[None]:
    """Keeps the creation of a SQLite file, which logs each change of a table, off the console."""
    loggers = [logging.getLogger(name) for name in ("alembic", "mlflow.store.db.utils")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
