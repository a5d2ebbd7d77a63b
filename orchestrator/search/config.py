"""The config's sections on the search: its budget, and how recipes are drawn and trials judged."""

from typing import Self

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from orchestrator.section import Seconds, Section

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

    sampler: str = "tpe"
    """The source of recipes: tpe, gp, nsga2, random, or model (those that a forecast of learning
    curves expects most of)."""
    scheduler: str = "halving"
    """The rule that decides which trials go on: halving (the worse are stopped),
    race (recipes begin cheap and the best are raised rung by rung), or none."""
    portfolio: str = "auto"
    """Recipes that served earlier tasks well, tried first unless the sweep has others to start
    with: auto (ours, with a built-in space and the sampler auto or model), none, or a file that
    `prunetune portfolio` wrote."""
    startup_trials: PositiveInt = 16
    """Recipes drawn at random before the sampler learns from results."""
    reduction_factor: float | None = Field(default=2.0, gt=1.0)
    """A trial goes on past a rung if it is among the best 1/reduction_factor; with null all do."""
    min_peers: PositiveInt = 6
    """Trials that must have been measured at a rung before any is stopped there."""
    confirm: float = Field(default=CONFIRMED_SHARE, ge=0.0, le=0.5)
    """The share of the budget's FLOPs and trials that may run recipes of the frontier again with
    another seed, the cheapest first, once the rest is spent; 0 confirms nothing."""
    generation: PositiveInt | None = None
    """Recipes a generation. The recipes of a generation depend only on whole generations before it,
    so that two sweeps with one seed give the same recipes, at the price of idle slots between
    generations. When left out, every recipe depends on all results there are."""
