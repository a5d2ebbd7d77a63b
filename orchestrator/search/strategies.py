"""Search strategies by the names that the config gives, built in this one place."""

from collections.abc import Callable, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import TypeVar

from orchestrator.search.chance import Chance
from orchestrator.search.config import SearchConfig
from orchestrator.search.halving import Halving
from orchestrator.search.no_race import NoRace
from orchestrator.search.nsga2 import nsga2
from orchestrator.search.race import Race
from orchestrator.search.sampler import MakeDraws, StudySampler
from orchestrator.search.strategy import Scheduler, Strategy
from orchestrator.search.tpe import tpe
from orchestrator.search.uniform import uniform
from search_spaces.problem import Problem
from search_spaces.ranges import Ranges
from search_spaces.space import Space
from trainables.errors import InputError

SAMPLERS: Mapping[str, Callable[[SearchConfig], MakeDraws]] = {
    "tpe": lambda search: tpe(startup_trials=search.startup_trials),
    "nsga2": lambda search: nsga2(population=max(2, search.startup_trials)),
    "random": lambda search: uniform,
}
"""The names that `search.sampler` may give."""
SCHEDULERS: Mapping[str, Callable[[SearchConfig, float], Scheduler]] = {
    "halving": lambda search, factor: Halving(reduction_factor=factor, min_peers=search.min_peers),
    "race": lambda search, factor: Race(),
    "none": lambda search, factor: NoRace(),
}
"""The names that `search.scheduler` may give; built with the reduction factor."""


def build_strategy(
    search: SearchConfig,
    *,
    study_path: Path,
    sweep_id: str,
    space: Space,
    ranges: Ranges,
    problem: Problem,
    seed: int,
    chance: Chance,
) -> Strategy:
    """The strategy that the config names; raises `InputError` for a name that is not known."""
    return Strategy(
        sampler=StudySampler(
            study_path=study_path,
            sweep_id=sweep_id,
            space=space,
            ranges=ranges,
            problem=problem,
            seed=seed,
            draws=sampler_draws(search),
        ),
        scheduler=scheduler(search),
        judges=(chance,),
        generation=search.generation,
    )


def sampler_draws(search: SearchConfig) -> MakeDraws:
    """Builds what `search.sampler` names; raises `InputError` for a name that is not known."""
    return _named(SAMPLERS, search.sampler, key="search.sampler")(search)


def scheduler(search: SearchConfig) -> Scheduler:
    """Builds what `search.scheduler` names; raises `InputError` for a name that is not known."""
    make = _named(SCHEDULERS, search.scheduler, key="search.scheduler")
    if search.reduction_factor is None:
        return NoRace()
    return make(search, search.reduction_factor)


T = TypeVar("T")


def _named(known: Mapping[str, T], name: str, *, key: str) -> T:
    if name in known:
        return known[name]
    close = get_close_matches(name, known, n=1)
    mend = f"did you mean {close[0]}?" if close else f"choose one of {', '.join(known)}."
    raise InputError(f"{key}={name!r} is not known; {mend}")
