"""The inputs of a sweep are looked for once, whether they are found or not."""

from pathlib import Path

import pytest

from orchestrator.config import SweepConfig, validate
from orchestrator.inputs import SweepInputs
from trainables.errors import InputError


def inputs(source: Path | str, cache: Path) -> SweepInputs:
    values = {
        "name": "flowers",
        "task": {"source": str(source), "resolution": 8},
        "backbone": {"model": "test_resnet"},
        "budget": {"trials": 1},
        "rungs": {"min_flops": 1e9, "max_flops": 2e9},
        "storage": {"cache": str(cache)},
    }
    return SweepInputs(validate(SweepConfig, values, what="the test"))


def test_what_is_refused_is_not_looked_for_again(tmp_path: Path) -> None:
    mistyped = inputs(tmp_path / "flowers", tmp_path)
    with pytest.raises(InputError, match=r"task\.source=.* does not exist") as first:
        _ = mistyped.summary
    (tmp_path / "flowers").mkdir()
    for part in ("summary", "model", "problem", "summary"):
        with pytest.raises(InputError) as again:
            getattr(mistyped, part)
        assert again.value is first.value
    with pytest.raises(InputError, match="is empty"):
        _ = inputs(tmp_path / "flowers", tmp_path).summary


def test_what_is_found_is_kept(tmp_path: Path) -> None:
    found = inputs("digits", tmp_path)
    assert found.summary is found.summary
    assert found.store is found.store
