"""How the tests are spread over processes."""

from pathlib import Path

import pytest

from tests.checkout import ROOT

WHOLE_SWEEPS = Path("tests/end_to_end")
"""The folder of the tests that start Ray, which those of one process share."""
APART = ("test_kill.py", "test_joint_sweep.py")
"""About half of them by the time they take: with the others in one process, that is the last."""


@pytest.hookimpl(tryfirst=True)  # before the groups are read from the marks
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Each file runs in one process, where its fixtures are made once."""
    for item in items:
        item.add_marker(pytest.mark.xdist_group(_group(item.path.relative_to(ROOT))))


def _group(file: Path) -> str:
    if file.parent != WHOLE_SWEEPS:
        return file.as_posix()
    return f"{WHOLE_SWEEPS}, {'apart' if file.name in APART else 'others'}"
