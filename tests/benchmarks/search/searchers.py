"""The searchers that a replay compares, by name: variants of the product and its peers."""

from collections.abc import Callable, Iterable, Mapping, Sequence

from orchestrator.search.chance import Chance
from orchestrator.search.forecaster import Forecaster
from orchestrator.search.halving import Halving
from orchestrator.search.model import model
from orchestrator.search.no_race import NoRace
from orchestrator.search.portfolio import KnownRecipe
from orchestrator.search.race import Race
from orchestrator.search.sampler import MakeDraws, StudySampler
from orchestrator.search.start import StartRecipe, StartSampler
from orchestrator.search.strategy import Judge, Scheduler, Strategy
from orchestrator.search.tpe import tpe
from orchestrator.search.uniform import uniform
from tests.benchmarks.search.peers import PEERS
from tests.benchmarks.search.pool import Pool
from tests.benchmarks.search.portfolio import portfolio_for, start_of, worst_of
from tests.benchmarks.search.replay import Event, Replay, Search, Setting
from tests.benchmarks.search.syne_tune_peer import syne_tune_peers
from tests.benchmarks.search.tables import CurveTable

Build = Callable[[Setting, Pool], Strategy]
"""Builds the strategy of one replay; its sampler must draw from the pool."""

MIN_PEERS = 6


def product(build: Build, *, once: bool = False) -> Search:
    """A search by the product's own driver; `once` is the pool's."""

    def search(setting: Setting) -> list[Event]:
        pool = Pool(setting.table, once=once)
        return Replay(setting, build(setting, pool), pool).run()

    return search


def raced(scheduler: Scheduler, draws: MakeDraws) -> Build:
    """A strategy of the product's sampler and a scheduler, judged by chance where it can be."""

    def build(setting: Setting, pool: Pool) -> Strategy:
        return Strategy(
            sampler=study_sampler(setting, pool, draws),
            scheduler=scheduler,
            judges=chance_judges(setting),
        )

    return build


def modelled(setting: Setting, pool: Pool, *, start: Sequence[StartRecipe] = ()) -> Strategy:
    """A race that a forecast rides on, and recipes that it expects most of."""
    forecaster = Forecaster(seed=setting.seed)
    return Strategy(
        sampler=StartSampler(study_sampler(setting, pool, model(forecaster)), start),
        scheduler=Race(forecaster=forecaster),
        judges=chance_judges(setting),
    )


def started(known: Callable[[CurveTable], Iterable[KnownRecipe]]) -> Build:
    """The same, which starts with recipes that are known of other tasks."""

    def build(setting: Setting, pool: Pool) -> Strategy:
        return modelled(setting, pool, start=start_of(setting.table, known(setting.table)))

    return build


def study_sampler(setting: Setting, pool: Pool, draws: MakeDraws) -> StudySampler:
    """The product's sampler over the table's space, whose draws snap to the pool."""
    return StudySampler(
        study_path=setting.folder / "optuna.journal",
        sweep_id="sweep",
        space=setting.table.space,
        ranges=setting.table.ranges,
        problem=setting.table.problem,
        seed=setting.seed,
        draws=draws,
        run_space=pool.draw,
    )


def chance_judges(setting: Setting) -> tuple[Judge, ...]:
    """The product's judge of chance, where errors are shares of images."""
    images, most_common = setting.table.images, setting.table.most_common
    if images is None or most_common is None:
        return ()
    return (Chance(images=images, most_common=most_common, min_peers=MIN_PEERS),)


HALVING = Halving(reduction_factor=2.0, min_peers=MIN_PEERS)

SEARCHERS: Mapping[str, Search] = {
    "shipped": product(raced(HALVING, tpe(startup_trials=16))),
    "race_random": product(raced(Race(), uniform), once=True),
    "race_tpe": product(raced(Race(), tpe(startup_trials=16)), once=True),
    "model": product(modelled, once=True),
    "portfolio": product(started(portfolio_for), once=True),
    "worst_portfolio": product(started(worst_of), once=True),
    "random": product(raced(NoRace(), uniform)),
    **PEERS,
    **syne_tune_peers(),
}

PEER_NAMES = frozenset({"random", *PEERS, *syne_tune_peers()})
"""The searchers that others are measured by."""
SLOW = frozenset({"gp", "ashacqr"})
"""Searchers that take minutes a search."""
LADDER = ("before", "race_random", "race_tpe", "model", "portfolio")
"""The steps from the product as it stood to what it is, each with one part more."""
