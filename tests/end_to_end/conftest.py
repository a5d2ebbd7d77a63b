"""One Ray for the whole sweeps that a process runs: starting one takes longer than many of them."""

from pathlib import Path

import pytest
import ray

from orchestrator.cluster.resources import connect


@pytest.fixture(scope="module")
def local_ray() -> None:
    """Ray on this machine, started by the first module that wants it."""
    connect(None)


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> None:
    """Stops Ray after the last of these tests, because others start one of another kind."""
    if nextitem is None or Path(__file__).parent not in nextitem.path.parents:
        ray.shutdown()
