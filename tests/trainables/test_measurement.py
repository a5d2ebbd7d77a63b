"""The record of a measurement."""

import json

import pytest

from trainables.measurement import Measurement, Outcome

MEASURED = Measurement(
    rung=3,
    train_flops=1.5e9,
    executed_flops=0.5e9,
    eval_flops=2e8,
    inference_flops=1e6,
    params=1000,
    updated_params=10,
    val_error=0.25,
    val_loss=0.9,
    train_seconds=1.25,
    images_seen=640,
)


def test_it_survives_json() -> None:
    assert Measurement.from_dict(json.loads(json.dumps(MEASURED.to_dict()))) == MEASURED


def test_what_is_unknown_is_none_and_not_zero() -> None:
    assert MEASURED.test_error is None
    assert MEASURED.peak_memory_bytes is None


def test_columns_of_a_table_that_are_none_of_its_own_are_ignored() -> None:
    assert Measurement.from_dict(MEASURED.to_dict() | {"sweep_id": "s", "rung": 4}).rung == 4


def test_a_missing_field_is_no_measurement() -> None:
    values = MEASURED.to_dict()
    del values["val_error"]
    with pytest.raises(TypeError, match="val_error"):
        Measurement.from_dict(values)


def test_outcomes_are_their_own_names() -> None:
    assert [str(outcome) for outcome in Outcome] == [
        "running",
        "complete",
        "infeasible",
        "diverged",
    ]
