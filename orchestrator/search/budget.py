"""The budget of a sweep."""

from typing import Self

from pydantic import PositiveFloat, PositiveInt, model_validator

from orchestrator.section import Seconds, Section


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
