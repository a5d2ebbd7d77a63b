"""Sweeps as the config builds them, rehearsed: trials made of numbers, and all else the product."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from orchestrator.search.chance import Chance
from orchestrator.search.config import Budget, SearchConfig
from orchestrator.search.rehearsal import Pace, Rehearsal
from orchestrator.search.strategies import build_strategy
from search_spaces.methods.filter_pruning import filter_pruning
from search_spaces.space import Space
from tests.orchestrator.search.asked_trials import PROBLEM, RUNGS

NO_LUCK = Chance(images=1000, most_common=1, min_peers=1)
"""So many classes that whatever a trial measures is better than guessing."""
PACE = Pace(flops_per_second=1e9, eval_flops=1e8, set_up_seconds=0.5)


def rehearsal(
    folder: Path,
    *,
    budget: Budget,
    space: Space = filter_pruning,
    ranges: Mapping[str, Any] | None = None,
    workers: int = 3,
    confirm: float = 0.0,
    **search: Any,
) -> Rehearsal:
    """The rehearsal of a sweep with these keys under `search`."""
    strategy = build_strategy(
        SearchConfig(**search),
        study_path=folder / "optuna.journal",
        sweep_id="sweep",
        space=space,
        ranges=ranges or {},
        problem=PROBLEM,
        seed=0,
        chance=NO_LUCK,
        budget=budget,
        background=False,
    )
    return Rehearsal(
        strategy,
        budget=budget,
        levels=RUNGS,
        pace=PACE,
        workers=workers,
        seed=0,
        confirm=confirm,
    )
