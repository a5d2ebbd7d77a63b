"""NSGA-II: generations told by the study alone, and children that have their parents' values."""

from pathlib import Path

import pytest

from orchestrator.search.nsga2 import nsga2
from tests.orchestrator.search.asked_trials import FEW, run
from tests.orchestrator.search.learning_samplers import sampler_of

POPULATION = 10


def test_the_first_generation_is_random_and_the_next_has_its_parents_values(
    tmp_path: Path,
) -> None:
    ranges = {**FEW, "optimizer": "sgd"}  # only what every recipe has is handed down
    sampler = sampler_of(tmp_path / "study.jsonl", nsga2(population=POPULATION), ranges=ranges)
    records = run(sampler, [], 2 * POPULATION)
    rates = [record.recipe.learning_rate for record in records]
    parents, children = rates[:POPULATION], rates[POPULATION:]
    assert len(set(parents)) == POPULATION
    assert sum(rate in parents for rate in children) >= POPULATION / 2, "the others are mutations"


def test_a_population_without_two_parents_is_refused() -> None:
    with pytest.raises(ValueError, match="population=1 must be at least 2"):
        nsga2(population=1)
