"""Suggestions: the time that one takes, and how much nearer to the optimum they come than random.

Each sampler that a config may name searches the pruning space on a task made of numbers, whose
optimum is known (`tests.orchestrator.search.asked_trials`). Late suggestions are the second half of
80 trials over few parameters; their pruning ratios miss the optimum by a share of what random ones
miss it by. The time is this process's own, over all parameters of the space, in a study of random
trials; a forecast is made before the clock runs, as a sweep makes it in the background.
"""

import os
import statistics
import tempfile
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from orchestrator.search.config import SearchConfig
from orchestrator.search.fallback import DispensableForecaster
from orchestrator.search.field import Field
from orchestrator.search.sampler import StudySampler
from orchestrator.search.strategies import SAMPLERS, sampler_draws
from orchestrator.search.strategy import Suggestion
from orchestrator.search.uniform import uniform
from orchestrator.store.ledger import TrialRecord
from search_spaces.ranges import Ranges
from tests.benchmarks.publish import publish
from tests.orchestrator.search.asked_trials import FEW, RUNGS, ratio_missed, run
from tests.orchestrator.search.learning_samplers import sampler_of

TRIALS = (50, 100, 500, 1000, 2000)
"""Trials in the study when a suggestion is timed."""
FROM, TO = 100, 2000
"""Trials between which the time should not grow."""
ASKED = 9
"""Suggestions of which the median is taken."""
SEEDS = range(5)
LEARNT = 80
"""Trials of a search whose later half is compared with random ones."""


class WatchedSampler:
    """A named sampler together with the forecast that it may draw by."""

    def __init__(self, name: str, folder: Path, *, seed: int = 0, ranges: Ranges = FEW) -> None:
        search = SearchConfig(sampler=name, startup_trials=10)
        self._forecaster = DispensableForecaster(seed=seed)
        self._field = Field(RUNGS, lambda rung: {})
        draws = sampler_draws(search, self._forecaster)
        self._sampler = sampler_of(folder / "study.jsonl", draws, seed=seed, ranges=ranges)

    def reconcile(self, records: Iterable[TrialRecord]) -> None:
        known = list(records)
        self._sampler.reconcile(known)
        for record in known:
            self._field.update(record)

    def learn(self) -> None:
        """Makes a new forecast if it is time."""
        self._forecaster.learn(self._field)

    def ask(
        self,
        number: int,
        *,
        max_target_flops: float | None = None,
        target_flops: float | None = None,
    ) -> Suggestion | None:
        return self._sampler.ask(
            number, max_target_flops=max_target_flops, target_flops=target_flops
        )

    def tell(self, record: TrialRecord) -> None:
        self._sampler.tell(record)
        self._field.update(record)
        self.learn()


def main() -> None:
    """Times and compares every sampler and prints the table."""
    with tempfile.TemporaryDirectory() as folder:
        history = run(_random(Path(folder)), [], max(TRIALS))
    random = {seed: _missed("random", seed) for seed in SEEDS}
    rows = [_row(name, history, random) for name in SAMPLERS]
    result = {
        "compared_trials": LEARNT,
        "seeds": len(SEEDS),
        "cores": os.cpu_count(),
        "load": round(os.getloadavg()[0], 1),
        "samplers": rows,
    }
    publish("suggestions", title="Suggestions of each sampler", result=result)


def _random(folder: Path) -> StudySampler:
    return sampler_of(folder / "study.jsonl", uniform, ranges={})


def _row(name: str, history: Sequence[TrialRecord], random: dict[int, float]) -> dict[str, Any]:
    missed = [_missed(name, seed) / random[seed] for seed in SEEDS]
    seconds = {trials: _seconds(name, history[:trials]) for trials in TRIALS}
    return {
        "sampler": name,
        **{f"ms_{trials}": round(1000 * taken, 1) for trials, taken in seconds.items()},
        f"ratio_{TO}_{FROM}": round(seconds[TO] / seconds[FROM], 2),
        "missed_median": round(statistics.median(missed), 2),
        "missed_worst": round(max(missed), 2),
    }


def _missed(name: str, seed: int) -> float:
    """How far the later suggestions miss the optimum, on average."""
    with tempfile.TemporaryDirectory() as folder:
        sampler = WatchedSampler(name, Path(folder), seed=seed)
        return ratio_missed(run(sampler, [], LEARNT)[LEARNT // 2 :])


def _seconds(name: str, history: Sequence[TrialRecord]) -> float:
    """The median time of a suggestion by a sampler that has been told the history."""
    with tempfile.TemporaryDirectory() as folder:
        sampler = WatchedSampler(name, Path(folder), ranges={})
        sampler.reconcile(history)
        sampler.learn()
        taken = []
        for number in range(len(history), len(history) + ASKED):
            started = time.process_time()
            sampler.ask(number)
            taken.append(time.process_time() - started)
        return statistics.median(taken)


if __name__ == "__main__":
    main()
