"""Trials that go on from finished ones, against the same recipes run alone."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.trainables.recipes import advance, run, rung_uri
from trainables.checkpoints import STATE
from trainables.finetune import Finetuning
from trainables.measurement import Measurement


def run_with_a_kill(make: Callable[[str | None], Finetuning], folder: Path) -> list[Measurement]:
    """Returns the curve of a trial that is saved in `folder` and killed after its first rung.

    `make` gives the trial as it is set up, resumed from a checkpoint.
    """
    trial = make(None)
    first = advance(trial)
    assert first is not None
    uri = rung_uri(folder, first.rung)
    trial.save(uri)
    return [first, *run(make(uri), folder)]


def unpaid(measurement: Measurement) -> Measurement:
    """Returns the measurement without the clock and without what was executed for it."""
    return replace(measurement, train_seconds=0.0, executed_flops=0.0)


def assert_went_on(
    raised: list[Measurement], *, lower: Path, alone: list[Measurement], batch_size: int
) -> None:
    """Fails unless the raised trial measured what it does alone, after the steps of the trunk.

    `lower` is the folder of the finished trial's last rung.
    """
    ended = state_of(lower)
    trunk_flops = ended["measurement"]["trunk_flops"]
    assert trunk_flops > 0
    shared_images = ended["trunk"]["steps"] * batch_size
    expected = [m for m in alone if m.images_seen > shared_images]
    assert [unpaid(m) for m in raised] == [unpaid(m) for m in expected]
    executed = [expected[0].train_flops - trunk_flops, *(m.executed_flops for m in expected[1:])]
    assert [m.executed_flops for m in raised] == pytest.approx(executed)


def assert_same_checkpoint(one: Path, other: Path) -> None:
    """Fails where two checkpoints differ in a bit, the clock and what was executed aside."""
    names = {path.name for path in one.iterdir()}
    assert names == {path.name for path in other.iterdir()}
    for name in names - {STATE}:
        assert (one / name).read_bytes() == (other / name).read_bytes(), name
    assert _comparable(state_of(one)) == _comparable(state_of(other))


def state_of(folder: Path) -> dict[str, Any]:
    """Reads the JSON of a checkpoint."""
    state: dict[str, Any] = json.loads((folder / STATE).read_text())
    return state


def _comparable(state: dict[str, Any]) -> dict[str, Any]:
    measurement = Measurement.from_dict(state["measurement"])
    trunk = {k: v for k, v in (state["trunk"] or {}).items() if k != "train_seconds"}
    return state | {"measurement": unpaid(measurement), "trunk": trunk}
