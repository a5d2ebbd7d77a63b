"""MLflow's UI of a sweep."""

import os
import socket
import sys
from pathlib import Path

from rich.console import Console

from orchestrator.config import SweepConfig, read_config
from orchestrator.store.folder import SweepFolder
from trainables.errors import InputError

LOOPBACK = "127.0.0.1"


def serve(sweep: str | None, *, port: int, console: Console) -> None:
    """Replaces this process by MLflow's UI on loopback, so that Ctrl-C ends it.

    Without `sweep` it shows the newest under ./runs. A sweep tracked on a server has its UI there:
    its address is shown. Raises `InputError` when there is no sweep or the port is taken.
    """
    folder = SweepFolder.find(sweep if sweep is not None else _newest())
    tracking = read_config(SweepConfig, folder.config).tracking
    if tracking.uri is not None:
        console.print(f"The sweep is tracked at {tracking.uri}", soft_wrap=True)
        return
    _check_free(port)
    console.print(f"MLflow UI of {folder.root.name}: http://{LOOPBACK}:{port} (Ctrl-C ends it)")
    sys.stdout.flush()
    command = (
        *(sys.executable, "-m", "mlflow", "ui", "--host", LOOPBACK, "--port", str(port)),
        # one user, one machine: one worker is enough, and there are no jobs to run
        *("--workers", "1", "--backend-store-uri", folder.tracking_uri),
    )
    environment = os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    os.execve(sys.executable, command, environment)


def _check_free(port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
        except OSError as error:
            raise InputError(
                f"Port {port} cannot be had ({error.strerror}); choose another with --port."
            ) from error


def _newest() -> str:
    sweeps = sorted(Path("runs").glob("*/sweep.yaml"), key=lambda path: path.stat().st_mtime)
    if not sweeps:
        raise InputError(
            "There is no sweep under ./runs; name one, or run `prunetune sweep` first."
        )
    return str(sweeps[-1].parent)
