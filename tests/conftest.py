"""How the tests are spread over processes."""

import pytest

from tests.checkout import ROOT

TOGETHER = "tests/end_to_end"
"""The folder whose files run in one process, so that they share what they start."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Each file runs in one process, where its fixtures are made once."""
    for item in items:
        file = item.path.relative_to(ROOT).as_posix()
        group = TOGETHER if file.startswith(f"{TOGETHER}/") else file
        item.add_marker(pytest.mark.xdist_group(group))
