"""Ray on this machine alone: it listens on loopback, and its sockets lie where their paths fit."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray
from ray._private import ray_constants

from trainables.errors import InputError, first_line
from trainables.images.cache import private_folder

_OBJECT_STORE_BYTES = 128 << 20
"""A sweep sends recipes and reports; images travel by memory map."""
_LONGEST_SOCKET = 103
"""Bytes of a socket's path: macOS takes 103, Linux 107."""
_LONGEST_NAME = len("/session_2026-01-31_23-59-59_123456_4194304/sockets/plasma_store.1")


def start(**options: Any) -> None:
    """Starts Ray for this process; raises `InputError` when the machine does not let it."""
    try:
        with _on_loopback():
            ray.init(
                address="local",
                include_dashboard=False,
                object_store_memory=_OBJECT_STORE_BYTES,
                _temp_dir=_short_folder(),
                **options,
            )
    except (OSError, ValueError, RuntimeError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(
            f"Ray cannot be started on this machine ({first_line(error)}), but trials run in it; "
            "set TMPDIR to a short folder on a disk with room, or ray.address to a running cluster."
        ) from error


@contextmanager
def _on_loopback() -> Iterator[None]:
    """Has Ray take loopback for this machine's address, while it starts.

    Otherwise it listens on every interface, and whoever reaches its ports can run code. It takes
    127.0.0.1 for an argument as the machine's outer address, and has this constant, false on
    systems without clusters, for the other choice.
    """
    before = ray_constants.ENABLE_RAY_CLUSTER
    ray_constants.ENABLE_RAY_CLUSTER = False
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before


def _short_folder() -> str | None:
    """Returns a folder for Ray's sessions, if paths of sockets in its own would be too long.

    A batch system's temporary folders may be too long. None is Ray's own folder.
    """
    given = os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or "/tmp"
    if len(os.fsencode(Path(given, "ray").absolute())) + _LONGEST_NAME <= _LONGEST_SOCKET:
        return None
    return str(private_folder(Path("/tmp")) / "ray")
