"""Ray on this machine: nobody else reaches it, and it starts whatever the temporary folder is."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from orchestrator.cluster import local_ray
from tests.checkout import ROOT
from tests.waiting import LIMIT_SECONDS

SESSION = """
import os, sys
from pathlib import Path
from orchestrator.cluster.resources import connect
import ray

connect(None)

@ray.remote
def worker():
    return os.getpid()

processes = {os.getpid(), ray.get(worker.remote())}
session = ray._private.worker._global_node.get_session_dir_path()
for folder in Path("/proc").glob("[0-9]*"):
    try:
        if session in (folder / "cmdline").read_text():
            processes.add(int(folder.name))
    except OSError:
        pass
sockets = set()
for process in processes:
    for link in Path(f"/proc/{process}/fd").glob("*"):
        try:
            sockets.add(os.readlink(link))
        except OSError:
            pass
LISTENING = "0A"
for family in ("tcp", "tcp6"):
    for line in Path(f"/proc/net/{family}").read_text().splitlines()[1:]:
        _, place, _, state, *rest = line.split()
        if state == LISTENING and f"socket:[{rest[5]}]" in sockets:
            print("listens", place.partition(":")[0])
print("session", session)
"""
LOOPBACK = {"0100007F", "0000000000000000FFFF00000100007F", "00000000000000000000000001000000"}
"""127.0.0.1 and ::1 as Linux writes them."""


def session_with(**environment: str) -> list[list[str]]:
    """What a process that starts Ray says, as words by line."""
    done = subprocess.run(
        [sys.executable, "-c", SESSION],
        env={k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"} | environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=LIMIT_SECONDS,
    )
    assert done.returncode == 0, done.stderr
    return [line.split(maxsplit=1) for line in done.stdout.splitlines()]


@pytest.mark.timeout(2 * LIMIT_SECONDS)
def test_ray_listens_on_loopback_alone_and_in_a_short_folder(tmp_path: Path) -> None:
    long = tmp_path / ("slurm-job-4711-" * 6)
    long.mkdir()
    said = session_with(TMPDIR=str(long))
    listening = {place for word, place in said if word == "listens"}
    assert listening
    assert listening <= LOOPBACK
    (session,) = (place for word, place in said if word == "session")
    assert not session.startswith(str(long))
    assert Path(session).parents[1].stat().st_mode & 0o077 == 0, "nobody else may look into it"


@pytest.mark.parametrize(
    ("name", "fits"),
    [("s", True), ("slurm-job-4711-" * 6, False), ("ü" * 40, False)],
)
def test_a_folder_is_too_long_when_a_sockets_path_is(
    monkeypatch: pytest.MonkeyPatch, name: str, *, fits: bool
) -> None:
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    monkeypatch.setenv("TMPDIR", f"/tmp/{name}")
    found = local_ray._short_folder()
    assert (found is None) == fits
    assert found is None or len(found) + local_ray._LONGEST_NAME <= local_ray._LONGEST_SOCKET
    monkeypatch.setenv("RAY_TMPDIR", "/tmp")
    assert local_ray._short_folder() is None, "Ray's own setting comes first"
