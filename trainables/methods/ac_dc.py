"""AC/DC: training that alternates between a compressed and a decompressed model (2106.12379).

From the paper: after a dense warm-up, compressed and decompressed phases alternate. A compressed
phase trains the weights with the largest magnitudes at its start and holds the others at zero; a
decompressed one trains everything, and the weights that were held start at zero. The last phase is
compressed, so that one run gives a sparse model. (It gives a dense one too, at the end of a
decompressed phase.)

Ours, in the spirit of the paper: transfer, so that the warm-up starts from pretrained weights; the
phases as shares of the steps, `warm_up` first, `finish` last, and between them `cycles` times a
compressed and a decompressed phase, all of one length; magnitudes ranked in each layer or over all
(`scope`); the optimiser's moments are left as they are from phase to phase. With fewer steps than
phases some have no step; the last step is always compressed. A rung that falls into another
phase measures the average compressed to the same sparsity, with the statistics of the dense model:
no exported model is ever less sparse than asked, and those of early rungs are worse for it.

Of the N values of all convolutions and linear layers below the head, round(sparsity * N) are zero,
Python's rounding, in every compressed step and every measured model.

Settings: `sparsity` in [0, 1), `scope` (layer, global), `cycles` 1 or more, `warm_up` in [0, 1) and
`finish` in (0, 1), together at most 1. `trainable_depth` must be 1, because decompressed phases
train everything. Sparsity 0 is plain finetuning, whatever the other settings.
"""

from bisect import bisect_right
from collections.abc import Mapping
from typing import Annotated, Any, Self

from pydantic import Field, model_validator

from search_spaces.recipe import Recipe
from trainables.mechanisms.scheduled_sparsity import ScheduledSparsity
from trainables.mechanisms.sparsity import SparsityScope, check_sparsity
from trainables.method import Conditions, Transfer
from trainables.settings import Settings, check_depth


class _Settings(Settings):
    sparsity: float = Field(ge=0, lt=1)
    scope: Annotated[SparsityScope, Field(strict=False)] = SparsityScope.GLOBAL
    cycles: int = Field(default=4, ge=1)
    warm_up: float = Field(default=0.1, ge=0, lt=1)
    finish: float = Field(default=0.25, gt=0, lt=1)

    @model_validator(mode="after")
    def _phases_fit(self) -> Self:
        if self.warm_up + self.finish > 1:
            raise ValueError(
                f"warm_up={self.warm_up!r} and finish={self.finish!r} must add up to at most 1"
            )
        return self


def check(recipe: Recipe, conditions: Conditions) -> None:
    """Raises `InputError` for settings, a depth below 1, and a model that cannot be masked."""
    settings = _Settings.read(recipe.settings)
    if settings.sparsity > 0:
        check_depth(recipe, low=1.0, high=1.0, instead="decompressed phases train everything")
        check_sparsity(conditions.model, settings.sparsity)


def transfer(recipe: Recipe, structure: Mapping[str, Any]) -> Transfer:
    """Returns a transfer whose masks follow the phases."""
    settings = _Settings.read(recipe.settings)
    if settings.sparsity == 0:
        return Transfer()
    phases = _Phases(settings)
    return ScheduledSparsity(phases, sparsity=settings.sparsity, scope=settings.scope)


class _Phases:
    """Share of the zeros asked for that a step holds: 1 in compressed phases, 0 in the others."""

    def __init__(self, settings: _Settings) -> None:
        self._settings = settings

    def __call__(self, step: int, total_steps: int) -> float:
        phase = bisect_right(self._starts(total_steps), step)
        return float(phase % 2)

    def _starts(self, total_steps: int) -> list[int]:
        """First steps of the phases after the warm-up, compressed ones first and last."""
        settings = self._settings
        length = (1 - settings.warm_up - settings.finish) / (2 * settings.cycles)
        shares = [settings.warm_up + i * length for i in range(2 * settings.cycles + 1)]
        return [min(round(share * total_steps), total_steps - 1) for share in shares]
