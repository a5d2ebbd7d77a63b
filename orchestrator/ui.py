"""The MLflow UI of a sweep."""

import subprocess
import sys
from pathlib import Path

from rich.console import Console

from orchestrator.config import SweepConfig, read_config
from orchestrator.folder import SweepFolder
from trainables.errors import InputError


def serve(sweep: str | None, *, port: int, console: Console) -> None:
    """Runs the MLflow UI on loopback until it is stopped.

    Without `sweep`, for the newest under ./runs. A sweep tracked on a server has its UI there:
    its address is shown. Raises `InputError` when there is no sweep or no UI comes up.
    """
    folder = SweepFolder.find(sweep if sweep is not None else _newest())
    tracking = read_config(SweepConfig, folder.config).tracking
    if tracking.uri is not None:
        console.print(f"The sweep is tracked at {tracking.uri}", soft_wrap=True)
        return
    console.print(f"MLflow UI of {folder.root.name}: http://127.0.0.1:{port} (Ctrl-C ends it)")
    command = (
        *(sys.executable, "-m", "mlflow", "ui", "--host", "127.0.0.1", "--port", str(port)),
        *("--backend-store-uri", folder.tracking_uri),
    )
    try:
        status = subprocess.run(command, check=False).returncode
    except KeyboardInterrupt:
        return
    if status:
        raise InputError(f"The MLflow UI ended with status {status}; is port {port} taken?")


def _newest() -> str:
    sweeps = sorted(Path("runs").glob("*/sweep.yaml"), key=lambda path: path.stat().st_mtime)
    if not sweeps:
        raise InputError(
            "There is no sweep under ./runs; name one, or run `prunetune sweep` first."
        )
    return str(sweeps[-1].parent)
