"""Recorded curves are the same packed and fresh, and each is there once."""

from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.benchmarks import curve_files
from tests.benchmarks.curve_files import Recorded, append, pack, recorded_curves
from tests.orchestrator.fake_trials import measurement, recipe
from trainables.measurement import Measurement

HELD_OUT = {"val_error_b": 0.55, "test_error": 0.6}


@pytest.fixture(autouse=True)
def _folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(curve_files, "TABLES", tmp_path)
    monkeypatch.setenv(curve_files.FOLDER, str(tmp_path / "fresh"))


def curve(number: int, *points: dict[str, object]) -> Recorded:
    return Recorded(
        number=number,
        origin="random",
        seed=0,
        recipe=recipe(number).to_dict(),
        params={"learning_rate": 0.1},
        distributions={"learning_rate": "{}"},
        points=points,
    )


def point(rung: int, outcome: str) -> dict[str, object]:
    return {"outcome": outcome, **measurement(rung, 1 / 3).to_dict(), **HELD_OUT}


CURVES = [
    curve(0, point(0, "running"), point(1, "complete")),
    curve(1, {"outcome": "infeasible", "reason": "so", "spent": 3.0}),
    curve(2, point(0, "running"), {"outcome": "diverged", "spent": 5.0}),
]


def test_packed_curves_are_the_recorded_ones() -> None:
    for recorded in CURVES:
        append("task", recorded)
    fresh = recorded_curves("task")
    assert fresh == CURVES
    pack("task")
    (Path(curve_files.TABLES) / "fresh" / "task.jsonl").unlink()
    packed = recorded_curves("task")
    assert [c.key for c in packed] == [c.key for c in fresh]
    for one, other in zip(packed, fresh, strict=True):
        assert [measured(p) for p in one.points] == [measured(p) for p in other.points]
        assert (one.recipe, one.params, one.origin) == (other.recipe, other.params, other.origin)


def test_a_curve_that_is_packed_and_fresh_counts_once() -> None:
    append("task", CURVES[0])
    pack("task")
    append("task", CURVES[1])
    assert recorded_curves("task")[1] == CURVES[1]
    assert len(recorded_curves("task")) == 2


def test_a_torn_line_is_as_if_it_were_never_written() -> None:
    append("task", CURVES[0])
    with (Path(curve_files.TABLES) / "fresh" / "task.jsonl").open("a") as file:
        file.write('{"number": 1')
    assert recorded_curves("task") == CURVES[:1]


def measured(point: Mapping[str, object]) -> object:
    names = ("outcome", "reason", "spent", *HELD_OUT)
    rest = {name: point.get(name) for name in names}
    return rest, Measurement.from_dict(point) if "rung" in point else None
