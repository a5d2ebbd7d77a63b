"""Samplers of the tests that look at what is learnt."""

from pathlib import Path

from orchestrator.search.sampler import MakeDraws, StudySampler
from search_spaces.methods.filter_pruning import filter_pruning
from search_spaces.ranges import Ranges
from tests.orchestrator.search.asked_trials import FEW, PROBLEM


def sampler_of(
    path: Path, draws: MakeDraws, *, seed: int = 0, ranges: Ranges = FEW
) -> StudySampler:
    """The sampler over few parameters, with its study at `path`."""
    return StudySampler(
        study_path=path,
        sweep_id="sweep",
        space=filter_pruning,
        ranges=ranges,
        problem=PROBLEM,
        seed=seed,
        draws=draws,
    )
