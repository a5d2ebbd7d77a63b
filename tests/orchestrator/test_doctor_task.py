"""What `prunetune doctor` tells of the images before a sweep begins."""

from pathlib import Path

import pytest
from PIL import Image

from orchestrator.config import SweepConfig, validate
from orchestrator.doctor import Examination
from orchestrator.inputs import SweepInputs


@pytest.fixture
def task(tmp_path: Path) -> Path:
    """A folder of two classes with ten images each."""
    for name in "ab":
        (tmp_path / "task" / name).mkdir(parents=True)
        for number in range(10):
            Image.new("L", (8, 8), number).save(tmp_path / "task" / name / f"{number}.png")
    return tmp_path / "task"


def told(task: Path) -> str:
    """Returns what the check of the task says."""
    config = {
        "name": "tiny",
        "task": {"source": str(task), "resolution": 16},
        "backbone": {"model": "test_resnet"},
        "budget": {"trials": 2},
        "rungs": {"min_flops": 2e9, "max_flops": 1e10},
        "storage": {"folder": str(task.parent / "sweep"), "cache": str(task.parent / "cache")},
    }
    examination = Examination(SweepInputs(validate(SweepConfig, config, what="the test")))
    (check,) = (one for one in examination.checks if one.title == "task")
    return check.run()


def test_what_is_passed_over_is_told_by_rule(task: Path) -> None:
    assert told(task).endswith("; none passed over")
    (task / "a" / "notes.txt").write_text("no image")
    (task / "__MACOSX").mkdir()
    (task / "__MACOSX" / "1.png").write_bytes(b"fork")
    found = told(task)
    assert found.startswith("2 classes; images: ")
    assert f"files that are no image by ending or content: 1 ({task}/a/notes.txt)" in found
    assert f"leftovers of operating systems and unpackers: 1 ({task}/__MACOSX)" in found
