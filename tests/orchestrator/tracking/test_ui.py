"""The UI is MLflow's own, on loopback, and ends with the command."""

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

import yaml
from mlflow import MlflowClient

from tests.checkout import ROOT
from tests.waiting import LIMIT_SECONDS, wait_until


def answers(port: int) -> bool:
    try:
        with urlopen(f"http://127.0.0.1:{port}/health", timeout=2) as response:
            return bool(response.read() == b"OK")
    except (URLError, ConnectionError, TimeoutError):
        return False


def test_the_ui_answers_until_it_is_stopped(tmp_path: Path) -> None:
    config = {
        "name": "flowers",
        "task": {"source": "digits"},
        "backbone": {"model": "resnet18"},
        "budget": {"trials": 1},
        "rungs": {"min_flops": 1e9, "max_flops": 2e9},
    }
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump(config))
    MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}").create_experiment("prunetune")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with subprocess.Popen(
        [sys.executable, "-m", "orchestrator", "ui", str(tmp_path), "--port", str(port)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
    ) as server:
        try:
            assert server.stdout is not None
            assert f"http://127.0.0.1:{port}" in server.stdout.readline()
            wait_until(lambda: answers(port), what="the UI answers")
            os.kill(server.pid, signal.SIGTERM)  # the one process that the user knows
            server.wait(timeout=LIMIT_SECONDS)
            wait_until(lambda: not answers(port), what="the UI is gone")
        finally:
            if server.poll() is None:
                os.killpg(server.pid, signal.SIGKILL)
