"""The hub's weights, asked of a hub of our own in a process that knows no other."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Event, Thread

import pytest
import safetensors.torch
import timm
import torch

from tests.checkout import ROOT

COMMIT = "0123456789abcdef0123456789abcdef01234567"
SCRIPT = """
import json, sys, time
from trainables.backbones import hub
from trainables.backbones.build import load_weights
from trainables.errors import InputError
from trainables.backbones.source import BackboneSource

hub.PATIENCE_SECONDS = 1
for model in sys.argv[1:]:
    start = time.monotonic()
    try:
        weights = load_weights(BackboneSource(model=model, weights="hub"))
        said = {"sum": sum(value.double().sum().item() for value in weights.values())}
    except InputError as error:
        said = {"error": str(error)}
    print(json.dumps(said | {"seconds": time.monotonic() - start}))
"""


class Hub(BaseHTTPRequestHandler):
    """Serves the weights of `test_resnet` once, and leaves who asks for others without answer."""

    def __init__(self, weights: bytes, served: Event, closing: Event, *args: object) -> None:
        self._weights, self._served, self._closing = weights, served, closing
        super().__init__(*args)  # type: ignore[arg-type]

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()
        self.wfile.write(self._weights)
        self._served.set()

    def log_message(self, format: str, *args: object) -> None:
        """Does nothing."""

    def _answer(self) -> None:
        if "test_resnet" not in self.path:
            self._closing.wait(timeout=30)
        gone = self._served.is_set()
        self.send_response(503 if gone else 200)
        self.send_header("Content-Length", "0" if gone else str(len(self._weights)))
        self.send_header("ETag", '"one-version"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.end_headers()


@pytest.fixture
def weights() -> dict[str, torch.Tensor]:
    state: dict[str, torch.Tensor] = timm.create_model("test_resnet").state_dict()
    return state


@pytest.fixture
def endpoint(weights: dict[str, torch.Tensor]) -> Iterator[str]:
    closing = Event()
    handler = partial(Hub, safetensors.torch.save(weights), Event(), closing)
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    closing.set()
    server.shutdown()
    thread.join()
    server.server_close()


def test_weights_are_fetched_kept_and_given_up_when_the_hub_is_silent(
    weights: dict[str, torch.Tensor], endpoint: str, tmp_path: Path
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, "test_resnet", "test_resnet", "test_efficientnet"],
        cwd=ROOT,
        env=os.environ | {"HF_ENDPOINT": endpoint, "HF_HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    fetched, kept, silent = map(json.loads, done.stdout.splitlines())
    total = sum(value.double().sum().item() for value in weights.values())
    assert fetched["sum"] == kept["sum"] == total
    assert silent["error"].startswith(
        "The pretrained weights of test_efficientnet could not be had from timm's hub ("
    )
    assert "give backbone.weights a local safetensors or state-dict file, or run" in silent["error"]
    assert silent["seconds"] < 20, "the client's own retries take more than 45 seconds"
