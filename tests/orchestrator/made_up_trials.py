"""Made-up trials: what a trial of any recipe would report, by formula and at once."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import exp, log10
from random import Random

from search_spaces.recipe import Recipe
from trainables.measurement import Measurement, Outcome, Report

STABLE_SHARE = 0.8
"""Share of the steps that a run towards more compute has in common with one that is over."""
BREAKING_RATE = 0.06
"""Learning rates above it make half of the trials diverge."""
IMAGES = 1000
"""Validation images, of which an error is a share."""
INFEASIBLE_SHARE = 0.03
"""Share of the recipes that cannot take a step before the second rung."""


@dataclass(frozen=True, kw_only=True)
class MadeUpTrial:
    """A trial on a task that likes a ratio of 0.4, a rate of 0.02 and compute."""

    recipe: Recipe
    seed: int
    levels: Sequence[float]
    begins_at: float = 0.0
    """Training FLOPs of another trial that it goes on from."""

    def reports(self, *, after: int | None = None) -> Iterator[Report]:
        """Its reports, all that lie behind the rung `after` if it is given: it then says once more
        what it measured there, as a trial that goes on does."""
        aim = self.recipe.target_flops
        rungs = [rung for rung, level in enumerate(self.levels) if level <= aim]
        if (end := self._untimely_end()) is not None:
            yield end
            return
        for rung in rungs:
            if self.levels[rung] > self.begins_at and (after is None or rung >= after):
                outcome = Outcome.COMPLETE if rung == rungs[-1] else Outcome.RUNNING
                yield Report(outcome=outcome, measurement=self._measured(rung))

    def _untimely_end(self) -> Report | None:
        chance = Random(self.seed)
        if chance.random() < INFEASIBLE_SHARE and self.recipe.target_flops < self.levels[1]:
            return Report(
                outcome=Outcome.INFEASIBLE, reason="no step fits", needs_flops=self.levels[1]
            )
        if self.recipe.learning_rate > BREAKING_RATE and chance.random() < 0.5:
            return Report(
                outcome=Outcome.DIVERGED, reason="so", unmeasured_flops=self.levels[0] / 2
            )
        return None

    def _measured(self, rung: int) -> Measurement:
        level, aim = self.levels[rung], self.recipe.target_flops
        before = max(self.levels[rung - 1] if rung else 0.0, self.begins_at)
        return Measurement(
            rung=rung,
            train_flops=level,
            executed_flops=level - before,
            eval_flops=1e7 * (1 + rung),
            inference_flops=1e6,
            params=1000,
            updated_params=1000,
            val_error=self._error(rung),
            val_loss=3 * self._error(rung),
            train_seconds=level / 1e9,
            images_seen=1000,
            trunk_flops=STABLE_SHARE * level if level == aim and self._keeps_steps() else 0.0,
        )

    def _error(self, rung: int) -> float:
        ratio = float(self.recipe.settings["pruning_ratio"])
        missed = (ratio - 0.4) ** 2 + 0.1 * abs(log10(self.recipe.learning_rate) + 1.7)
        lowest = min(0.8, 0.05 + missed)
        noise = Random(f"{self.seed} {rung}").uniform(-0.02, 0.02)
        error = lowest + (0.9 - lowest) * exp(-0.5 * (1 + rung)) + noise
        return round(IMAGES * min(1.0, max(0.0, error))) / IMAGES

    def _keeps_steps(self) -> bool:
        return self.recipe.schedule == "warmup_stable_decay"
