"""The config's sections on the search: its budget, and how recipes are drawn and trials judged."""

from collections.abc import Mapping
from typing import Self

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from orchestrator.section import Seconds, Section

AUTO = "auto"
"""The name that stands for what won in replays of recorded curves (`make bench-search`)."""
BEFORE_AUTO: Mapping[str, str] = {"sampler": "tpe", "scheduler": "halving"}
"""The names that a sweep has had which an older prunetune began and which tells none."""
CONFIRMED_SHARE = 0.05
"""The share of a budget that confirms the frontier. With three rungs a decade a twentieth of the
FLOPs of three runs to the highest rung pays for one run at each rung up to a twentieth of it, and
with a budget of twenty runs for one at each rung but the highest; the search hardly misses it."""


class Budget(Section):
    """The end of a sweep: the first limit that is reached. Raising a limit extends the sweep."""

    trials: PositiveInt | None = None
    """Trials, however they end."""
    sweep_flops: PositiveFloat | None = None
    """Training FLOPs over all trials; no trial is begun that could exceed it."""
    wall_time: Seconds | None = None
    """Seconds, or `90s`, `20m`, `1h30m`; running trials then pause at their next rung."""

    @model_validator(mode="after")
    def _bounded(self) -> Self:
        if self.trials is None and self.sweep_flops is None and self.wall_time is None:
            raise ValueError("needs at least one of trials, sweep_flops and wall_time")
        return self


class SearchConfig(Section):
    """The search: how recipes are drawn and races decided."""

    sampler: str = "auto"
    """The source of recipes: auto (model if trials race, else tpe), model (those that a forecast of
    the sweep's learning curves expects most of), tpe, gp, nsga2 or random. A sweep that goes on
    under auto keeps the sampler that it had."""
    scheduler: str = "auto"
    """The rule that decides which trials go on: auto (race), race (recipes begin cheap and the best
    are raised rung by rung), halving (the worse are stopped) or none. A sweep that goes on under
    auto keeps the scheduler that it had."""
    portfolio: str = "auto"
    """Recipes that served earlier tasks well, tried first unless the sweep has others to start
    with: auto (ours, with a built-in space and the sampler model), none, or a file that
    `prunetune portfolio` wrote."""
    startup_trials: PositiveInt = 16
    """The samplers tpe and gp draw so many recipes at random before they learn from results, and
    nsga2 has so many a generation; model and random do not ask."""
    reduction_factor: float | None = Field(default=2.0, gt=1.0)
    """The scheduler halving lets a trial go on past a rung if it is among the best
    1/reduction_factor; race does not ask. With null, whatever the scheduler, all go on: none."""
    min_peers: PositiveInt = 6
    """Trials that must have been measured at a rung before halving stops any there, and before
    any, whatever the scheduler, ends there as diverged because it only guesses."""
    confirm: float = Field(default=CONFIRMED_SHARE, ge=0.0, le=0.5)
    """The share of the budget's FLOPs and trials that may run recipes of the frontier again with
    another seed, the cheapest first, once the rest is spent; 0 confirms nothing."""
    generation: PositiveInt | None = None
    """Recipes a generation. The recipes of a generation depend only on whole generations before it,
    so that two sweeps with one seed give the same recipes, at the price of idle slots between
    generations. When left out, every recipe depends on all results there are."""

    def resolved(self) -> Self:
        """Returns the search with the names that auto stands for."""
        scheduler = "race" if self.scheduler == AUTO else self.scheduler
        if self.reduction_factor is None:
            scheduler = "none"
        best = "model" if scheduler == "race" else "tpe"
        sampler = best if self.sampler == AUTO else self.sampler
        return self.model_copy(update={"sampler": sampler, "scheduler": scheduler})

    def going_on(self, names: Mapping[str, str]) -> Self:
        """Returns the search of a sweep that has begun with the names of sampler and scheduler.

        Where the search says auto, the sweep goes on with what it had.
        """
        kept = {key: name for key, name in names.items() if getattr(self, key) == AUTO}
        return self.model_copy(update=kept)

    @property
    def names(self) -> Mapping[str, str]:
        """The names of sampler and scheduler, by their keys."""
        return {"sampler": self.sampler, "scheduler": self.scheduler}
