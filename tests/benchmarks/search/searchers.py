"""The searchers that a replay compares, by name: variants of the product and its peers."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from orchestrator.search.chance import Chance
from orchestrator.search.config import Budget, SearchConfig
from orchestrator.search.portfolio import KnownRecipe
from orchestrator.search.strategies import build_strategy
from orchestrator.search.strategy import Strategy
from tests.benchmarks.search.peers import PEERS
from tests.benchmarks.search.pool import Pool
from tests.benchmarks.search.portfolio import portfolio_for, start_of, worst_of
from tests.benchmarks.search.replay import Event, Replay, Search, Setting
from tests.benchmarks.search.syne_tune_peer import syne_tune_peers
from tests.benchmarks.search.tables import CurveTable

Build = Callable[[Setting, Pool], Strategy]
"""Builds the strategy of one replay; its sampler must draw from the pool."""


def product(build: Build, *, once: bool = False) -> Search:
    """A search by the product's own driver; `once` is the pool's."""

    def search(setting: Setting) -> list[Event]:
        pool = Pool(setting.table, once=once)
        return Replay(setting, build(setting, pool), pool).run()

    return search


def configured(
    *,
    once: bool = False,
    known: Callable[[CurveTable], Iterable[KnownRecipe]] = lambda table: (),
    **keys: Any,
) -> Search:
    """A search as the product builds it for a config with these keys under `search`.

    It starts with the recipes that are known of other tasks.
    """

    def build(setting: Setting, pool: Pool) -> Strategy:
        return build_strategy(
            SearchConfig(**keys),
            study_path=setting.folder / "optuna.journal",
            sweep_id="sweep",
            space=setting.table.space,
            ranges=setting.table.ranges,
            problem=setting.table.problem,
            seed=setting.seed,
            chance=chance(setting),
            budget=Budget(sweep_flops=setting.budget_flops),
            start=start_of(setting.table, known(setting.table)),
            run_space=pool.draw,
            background=False,
        )

    return product(build, once=once)


def chance(setting: Setting) -> Chance:
    """The product's judge of chance, which judges nobody where errors are no shares of images."""
    images, most_common = setting.table.images, setting.table.most_common
    if images is None or most_common is None:
        return Chance(images=1, most_common=0, min_peers=10**9)
    return Chance(images=images, most_common=most_common, min_peers=SearchConfig().min_peers)


SEARCHERS: Mapping[str, Search] = {
    "halving_tpe": configured(sampler="tpe", scheduler="halving"),
    "race_random": configured(sampler="random", scheduler="race", once=True),
    "race_tpe": configured(sampler="tpe", scheduler="race", once=True),
    "race_model": configured(sampler="model", scheduler="race", once=True),
    "portfolio": configured(sampler="model", scheduler="race", once=True, known=portfolio_for),
    "worst_portfolio": configured(sampler="model", scheduler="race", once=True, known=worst_of),
    "random": configured(sampler="random", scheduler="none"),
    **PEERS,
    **syne_tune_peers(),
}

PEER_NAMES = frozenset({"random", *PEERS, *syne_tune_peers()})
"""The searchers that others are measured by."""
SLOW = frozenset({"gp", "ashacqr"})
"""Searchers that take minutes a search."""
LADDER = ("before", "halving_tpe", "race_random", "race_tpe", "race_model", "portfolio")
"""The steps from the product as it stood to what it is."""
