"""The ranking finds what was built to matter, and says so when it can claim nothing."""

from typing import Any

import pytest

from analysis.importance import COMPUTE, MIN_TRIALS, UNFINISHED, recipe_importance
from analysis.table import measurement_table
from tests.analysis.sweeps import sweep


@pytest.fixture(scope="module")
def measurements() -> list[dict[str, Any]]:
    return sweep(80)[0]


def test_what_matters_ranks_above_what_does_not(measurements: list[dict[str, Any]]) -> None:
    result = recipe_importance(measurements)
    by_name = {field.name: field for field in result.fields}
    assert result.reason is None
    assert result.r2 is not None
    assert 0.5 < result.r2 < 1
    assert {f.name for f in result.fields[:3]} == {COMPUTE, "pruning_ratio", "learning_rate"}
    for idle in ("label_smoothing", "batch_size", "criterion"):
        assert by_name[idle].importance < 0.03 < by_name["learning_rate"].importance
    assert all(field.spread >= 0 for field in result.fields)
    assert UNFINISHED in by_name
    assert "target_flops" not in by_name
    assert result.constant == ("resolution",)


def test_the_same_measurements_and_seed_give_the_same_ranking(
    measurements: list[dict[str, Any]],
) -> None:
    few = [row for row in measurements if row["number"] < 18]
    result = recipe_importance(few, seed=3)
    assert result == recipe_importance(measurement_table(reversed(few)), seed=3)
    assert result != recipe_importance(few, seed=4)


def test_few_trials_give_a_reason_and_no_ranking(measurements: list[dict[str, Any]]) -> None:
    trials = sorted({row["number"] for row in measurements})[: MIN_TRIALS - 1]
    result = recipe_importance([row for row in measurements if row["number"] in trials])
    assert result.fields == ()
    assert result.reason == "9 trials were measured; a ranking needs at least 10."
    assert recipe_importance([]).reason is not None


def test_one_recipe_throughout_gives_a_reason(measurements: list[dict[str, Any]]) -> None:
    recipe = {name: v for name, v in measurements[0].items() if name.startswith("recipe.")}
    recipe["recipe.target_flops"] = 1.0
    same = [
        {k: v for k, v in row.items() if not k.startswith("recipe.")} | recipe
        for row in measurements
    ]
    result = recipe_importance(same)
    assert result.fields == ()
    assert result.reason == "All trials have the same recipe."
    assert "learning_rate" in result.constant


def test_one_error_throughout_gives_a_reason(measurements: list[dict[str, Any]]) -> None:
    result = recipe_importance([row | {"val_error": 0.5} for row in measurements])
    assert result.fields == ()
    assert result.reason == "All trials have the same validation error."
