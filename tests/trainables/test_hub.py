"""The hub's weights, from a hub of our own on this machine, run in a process that knows no other."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import safetensors.torch
import timm
import torch

ROOT = Path(__file__).parents[2]
COMMIT = "0123456789abcdef0123456789abcdef01234567"
SCRIPT = """
import json, sys, time
from trainables import hub
from trainables.backbones import load_weights
from trainables.errors import InputError
from trainables.sources import BackboneSource

hub.PATIENCE_SECONDS = 1
start = time.monotonic()
try:
    weights = load_weights(BackboneSource(model=sys.argv[1], weights="hub"))
    said = {"sum": sum(value.double().sum().item() for value in weights.values())}
except InputError as error:
    said = {"error": str(error)}
print(json.dumps(said | {"seconds": time.monotonic() - start}))
"""


class Hub(BaseHTTPRequestHandler):
    """Serves one file as every model's `model.safetensors`."""

    def __init__(self, content: bytes, *args: object) -> None:
        self._content = content
        super().__init__(*args)  # type: ignore[arg-type]

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        if self._answer():
            self.wfile.write(self._content)

    def log_message(self, format: str, *args: object) -> None:
        """Nothing."""

    def _answer(self) -> bool:
        there = self.path.endswith("model.safetensors")
        self.send_response(200 if there else 404)
        self.send_header("Content-Length", str(len(self._content) if there else 0))
        self.send_header("ETag", '"one-version"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.end_headers()
        return there


@contextmanager
def serving(content: bytes) -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Hub, content))
    thread = Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def load(model: str, *, endpoint: str, home: Path, **settings: str) -> dict[str, object]:
    """What a fresh process says of the model's weights."""
    environment = os.environ | {"HF_ENDPOINT": endpoint, "HF_HOME": str(home)} | settings
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, model],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    said: dict[str, object] = json.loads(done.stdout.splitlines()[-1])
    return said


def test_weights_come_from_the_hub_and_then_from_its_cache(tmp_path: Path) -> None:
    torch.manual_seed(0)
    state = timm.create_model("test_resnet", num_classes=1000).state_dict()
    total = sum(value.double().sum().item() for value in state.values())
    with serving(safetensors.torch.save(state)) as endpoint:
        online = load("test_resnet", endpoint=endpoint, home=tmp_path)
    assert online["sum"] == total
    offline = load("test_resnet", endpoint=endpoint, home=tmp_path, HF_HUB_OFFLINE="1")
    assert offline["sum"] == total


def test_a_hub_that_never_answers_is_given_up_soon(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        endpoint = f"http://127.0.0.1:{silent.getsockname()[1]}"
        said = load("test_resnet", endpoint=endpoint, home=tmp_path)
    assert "pretrained weights of test_resnet could not be had from timm's hub" in str(said)
    assert "give backbone.weights a local" in str(said)
    assert "or run where the hub can be reached." in str(said)
    assert float(str(said["seconds"])) < 20  # the client's own retries take more than 45
