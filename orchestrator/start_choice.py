"""The choice of what a sweep starts with: the user's recipes, those of earlier sweeps, or ours."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import inf
from pathlib import Path

from orchestrator.config import SweepConfig
from orchestrator.search.config import Budget
from orchestrator.search.earlier import earlier_sweep
from orchestrator.search.fitting import OfferedSpace
from orchestrator.search.given import NotOfferedError
from orchestrator.search.portfolio import SHIPPED, SIZE, KnownRecipe, choose, read
from orchestrator.search.start import SHARE, StartRecipe, affordable
from orchestrator.search.strategies import aims

KNOWING_SAMPLER = "model"
"""The sampler that begins with the portfolio unless told otherwise; others are as published."""


@dataclass(frozen=True, kw_only=True)
class StartChoice:
    """The recipes that a sweep tries first."""

    recipes: tuple[StartRecipe, ...]
    told: str
    """Their sources, and what was passed over, for people."""


def choose_start(
    config: SweepConfig, offered: OfferedSpace, *, after: Sequence[str] = ()
) -> StartChoice:
    """Returns what the config and the earlier sweeps `after` have the sweep start with.

    The user's own recipes come first, then those of the earlier sweeps; without either, those of
    the portfolio. Raises `InputError` for a recipe of the user's that the space does not have, and
    for sweeps or a portfolio that cannot be read.
    """
    written = [
        StartRecipe(values=offered.written(recipe, key=key), origin=key)
        for key, recipe in ((f"space.start.{n}", r) for n, r in enumerate(config.space.start))
    ]
    portfolio = _portfolio(config)
    if not written and not after and portfolio is None:
        return StartChoice(recipes=(), told="recipes drawn from the space")
    lowest, _ = aims(offered.space, offered.ranges, offered.problem)
    entry = offered.problem.rungs[lowest]
    size = affordable(config.budget, most=SIZE, entry_flops=entry)
    gathered = _Gathered(offered)
    if after:
        choose([earlier_sweep(run) for run in after], size, fits=gathered.takes)
    elif not written and portfolio is not None:
        for recipe in read(portfolio):
            if len(gathered.recipes) == size:
                break
            gathered.takes(recipe)
    told = [*_told(written, config.budget, entry), *gathered.told()]
    return StartChoice(recipes=(*written, *gathered.recipes), told="; ".join(told))


class _Gathered:
    """Recipes known from elsewhere, as far as the space offers them."""

    def __init__(self, offered: OfferedSpace) -> None:
        self._offered = offered
        self._sweeps: Counter[str] = Counter()
        self._moved: Counter[str] = Counter()
        self._missing: Counter[str] = Counter()
        self.recipes: list[StartRecipe] = []

    def takes(self, recipe: KnownRecipe) -> bool:
        """Adds the recipe if the space offers it and does not have it yet."""
        try:
            fitted = self._offered.known(recipe)
        except NotOfferedError as error:
            self._missing[str(error)] += 1
            return False
        if any(fitted.values == other.values for other in self.recipes):
            return False
        self._sweeps[recipe.sweep] += 1
        self._moved.update(fitted.moved)
        origin = f"{recipe.sweep}, trial {recipe.trial}"
        self.recipes.append(StartRecipe(values=fitted.values, origin=origin))
        return True

    def told(self) -> Iterator[str]:
        """Says which sweeps the recipes are of, what was changed, and why others are missing."""
        if self._sweeps:
            yield ", ".join(f"{count} of {sweep}" for sweep, count in self._sweeps.items())
        if self._moved:
            yield f"moved into the search space's range: {_counted(self._moved)}"
        if self._missing:
            yield f"passed over because {_counted(self._missing)}"


def _counted(counts: Counter[str]) -> str:
    return ", ".join(f"{what} ({count})" for what, count in counts.most_common())


def _told(written: Sequence[StartRecipe], budget: Budget, entry: float) -> Iterator[str]:
    """Says how many recipes are the user's own, and how much of the budget if that is a lot."""
    if not written:
        return
    share = len(written) * entry / (budget.sweep_flops or inf)
    much = f", which take {share:.0%} of budget.sweep_flops" if share > SHARE else ""
    yield f"{len(written)} of space.start{much}"


def _portfolio(config: SweepConfig) -> Path | None:
    """The file of the portfolio that the config asks for, if any."""
    match config.search.portfolio:
        case "none":
            return None
        case "auto":
            knows = config.search.resolved().sampler == KNOWING_SAMPLER
            return SHIPPED if knows and ":" not in config.space.function else None
        case path:
            return Path(path).expanduser()
