"""Search strategies by the names that the config gives, built in this one place."""

from bisect import bisect_right
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

from optuna.samplers import RandomSampler

from orchestrator.search.chance import Chance
from orchestrator.search.config import AUTO, Budget, SearchConfig
from orchestrator.search.fallback import DispensableForecaster
from orchestrator.search.forecaster import GROWTH, Forecaster
from orchestrator.search.gp import gp
from orchestrator.search.halving import Halving
from orchestrator.search.model import model
from orchestrator.search.no_race import NoRace
from orchestrator.search.nsga2 import nsga2
from orchestrator.search.race import Race
from orchestrator.search.sampler import MakeDraws, RunSpace, StudySampler
from orchestrator.search.start import StartRecipe, StartSampler, most_flops
from orchestrator.search.strategy import Scheduler, Strategy
from orchestrator.search.tpe import tpe
from orchestrator.search.uniform import uniform
from search_spaces.draws import draw
from search_spaces.problem import Problem
from search_spaces.ranges import Ranges
from search_spaces.space import Space
from trainables.errors import InputError


@dataclass(frozen=True, kw_only=True)
class Rivals:
    """The recipes that compete in a race, as it must know them."""

    forecaster: Forecaster | None = None
    """The forecast that it may ride on."""
    lowest: int = 0
    """The lowest rung that the space has recipes aim at."""
    highest: int | None = None
    """The highest; None for the grid's."""


SAMPLERS: Mapping[str, Callable[[SearchConfig, DispensableForecaster], MakeDraws]] = {
    "tpe": lambda search, forecaster: tpe(startup_trials=search.startup_trials),
    "nsga2": lambda search, forecaster: nsga2(population=max(2, search.startup_trials)),
    "random": lambda search, forecaster: uniform,
    "gp": lambda search, forecaster: gp(startup_trials=max(2, search.startup_trials)),
    "model": lambda search, forecaster: model(
        forecaster, otherwise=tpe(startup_trials=search.startup_trials)
    ),
}
"""The names that `search.sampler` may give besides auto."""
SCHEDULERS: Mapping[str, Callable[[SearchConfig, Rivals], Scheduler]] = {
    "halving": lambda search, rivals: halving(search),
    "race": lambda search, rivals: Race(
        forecaster=rivals.forecaster, lowest=rivals.lowest, highest=rivals.highest
    ),
    "none": lambda search, rivals: NoRace(),
}
"""The names that `search.scheduler` may give besides auto."""
_ALL = Rivals()
_AIMS = 256
"""Recipes drawn to find out between which rungs a space has them aim."""


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
    budget: Budget,
    start: Sequence[StartRecipe] = (),
    run_space: RunSpace = draw,
    background: bool = True,
) -> Strategy:
    """The strategy that the config names, which tries the recipes of `start` first.

    In the `background` it makes forecasts while others serve, except in generations, which depend
    on whole ones before them and on no thread. A replay has them made at once, so that it repeats.
    Raises `InputError` for a name that is not known.
    """
    search = search.resolved()
    forecaster = None
    if search.sampler == "model":
        forecaster = DispensableForecaster(
            seed=seed,
            growth=GROWTH if search.generation is None else 1.0,
            background=background and search.generation is None,
            repeatable=search.generation is not None,
        )
    lowest, highest = aims(space, ranges, problem)
    rivals = Rivals(forecaster=forecaster, lowest=lowest, highest=highest)
    sampler = StudySampler(
        study_path=study_path,
        sweep_id=sweep_id,
        space=space,
        ranges=ranges,
        problem=problem,
        seed=seed,
        draws=sampler_draws(search, forecaster),
        run_space=run_space,
    )
    most = most_flops(budget, len(start), entry_flops=problem.rungs[lowest])
    return Strategy(
        sampler=StartSampler(sampler, start, most_flops=most) if start else sampler,
        scheduler=scheduler(search, rivals),
        watch=forecaster.learn if forecaster else None,
        judges=(chance,),
        generation=search.generation,
    )


def halving(search: SearchConfig) -> Halving:
    """Builds the halving race, which has a factor by which trials are reduced."""
    assert search.reduction_factor is not None  # else nobody races: `SearchConfig.resolved`
    return Halving(reduction_factor=search.reduction_factor, min_peers=search.min_peers)


def aims(space: Space, ranges: Ranges, problem: Problem) -> tuple[int, int]:
    """The lowest and the highest rung that recipes of the space aim at."""
    draws = (draw(space, ranges, problem, RandomSampler(seed=seed)) for seed in range(_AIMS))
    targets = {drawn.recipe.target_flops for drawn in draws}
    rungs = [bisect_right(problem.rungs, target * (1 + 1e-9)) - 1 for target in targets]
    return max(0, min(rungs)), max(0, max(rungs))


def sampler_draws(
    search: SearchConfig, forecaster: DispensableForecaster | None = None
) -> MakeDraws:
    """Builds what `search.sampler` names; raises `InputError` for a name that is not known."""
    _known(search.sampler, SAMPLERS, key="search.sampler")
    return SAMPLERS[search.resolved().sampler](search, forecaster or DispensableForecaster(seed=0))


def scheduler(search: SearchConfig, rivals: Rivals = _ALL) -> Scheduler:
    """Builds what `search.scheduler` names; raises `InputError` for a name that is not known."""
    _known(search.scheduler, SCHEDULERS, key="search.scheduler")
    return SCHEDULERS[search.resolved().scheduler](search, rivals)


def _known(name: str, others: Iterable[str], *, key: str) -> None:
    """Raises `InputError` for a name that is neither auto nor among the others."""
    known = (AUTO, *others)
    if name in known:
        return
    close = get_close_matches(name, known, n=1)
    mend = f"did you mean {close[0]}?" if close else f"choose one of {', '.join(known)}."
    raise InputError(f"{key}={name!r} is not known; {mend}")
