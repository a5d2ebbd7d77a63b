"""Waits for a state of another thread or process."""

import time
from collections.abc import Callable

LIMIT_SECONDS = 200.0
"""Far more than any state takes to come, on however busy a machine."""


def wait_until(condition: Callable[[], object], *, what: str) -> None:
    """Returns once `condition()` holds; fails with `what` was waited for if it never does."""
    deadline = time.monotonic() + LIMIT_SECONDS
    while not condition():
        assert time.monotonic() < deadline, f"waited in vain until {what}"
        time.sleep(0.02)
