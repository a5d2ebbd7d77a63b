"""TPE: what it learns, and from whom."""

from dataclasses import replace
from pathlib import Path

import pytest

from orchestrator.search.tpe import tpe
from orchestrator.store.ledger import TrialState
from tests.orchestrator.search.asked_trials import (
    complete,
    error_of,
    running,
)
from tests.orchestrator.search.learning_samplers import sampler_of


def test_what_cannot_be_realised_is_avoided(tmp_path: Path) -> None:
    sampler = sampler_of(tmp_path / "study.jsonl", tpe(startup_trials=10))
    chosen = []
    for number in range(60):
        record = running(sampler.ask(number))
        chosen.append(record.recipe.settings.get("width_rule"))
        if chosen[-1] == "all":
            sampler.tell(replace(record, state=TrialState.INFEASIBLE, reason="layer conv1"))
        else:
            sampler.tell(complete(record, error_of(record.recipe)))
    assert chosen[:10].count("all") >= 3, "half of the random draws"
    assert chosen[30:].count("all") <= 8, "of thirty"


def test_no_startup_trials_are_refused() -> None:
    with pytest.raises(ValueError, match="startup_trials=0 must be at least 1"):
        tpe(startup_trials=0)
