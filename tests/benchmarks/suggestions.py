"""Suggestions: the time that one takes, and how much nearer to the optimum they come than random.

Each sampler that a config may name searches the pruning space on a task made of numbers, whose
optimum is known (`tests.orchestrator.search.asked_trials`). Late suggestions are the second half of
80 trials over few parameters; their pruning ratios miss the optimum by a share of what random ones
miss it by. The time is this process's own, over all parameters of the space.
"""

import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from orchestrator.search.config import SearchConfig
from orchestrator.search.strategies import SAMPLERS, sampler_draws
from tests.benchmarks.publish import publish
from tests.orchestrator.search.asked_trials import ratio_missed, run
from tests.orchestrator.search.learning_samplers import sampler_of

TRIALS = (50, 200, 500)
"""Trials in the study when a suggestion is timed."""
ASKED = 5
"""Suggestions of which the median is taken."""
SEEDS = range(5)
LEARNT = 80
"""Trials of a search whose later half is compared with random ones."""


def main() -> None:
    """Times and compares every sampler and prints the table."""
    random = {seed: _missed("random", seed) for seed in SEEDS}
    rows = [_row(name, random) for name in SAMPLERS]
    result = {"compared_trials": LEARNT, "seeds": len(SEEDS), "samplers": rows}
    publish("suggestions", title="Suggestions of each sampler", result=result)


def _row(name: str, random: dict[int, float]) -> dict[str, Any]:
    missed = [_missed(name, seed) / random[seed] for seed in SEEDS]
    return {
        "sampler": name,
        **{f"seconds_{trials}": round(_seconds(name, trials), 3) for trials in TRIALS},
        "missed_median": round(statistics.median(missed), 2),
        "missed_worst": round(max(missed), 2),
    }


def _missed(name: str, seed: int) -> float:
    """How far the later suggestions miss the optimum, on average."""
    search = SearchConfig(sampler=name, startup_trials=10)
    with tempfile.TemporaryDirectory() as folder:
        sampler = sampler_of(Path(folder) / "study.jsonl", sampler_draws(search), seed=seed)
        return ratio_missed(run(sampler, [], LEARNT)[LEARNT // 2 :])


def _seconds(name: str, trials: int) -> float:
    """The median time of a suggestion by a sampler that has been told `trials` trials."""
    search = SearchConfig(sampler=name, startup_trials=10)
    with tempfile.TemporaryDirectory() as folder:
        few = sampler_of(Path(folder) / "few", sampler_draws(SearchConfig()), ranges={})
        records = run(few, [], TRIALS[0])
        many = sampler_of(Path(folder) / "many", sampler_draws(search), ranges={})
        many.reconcile(replace(records[n % len(records)], number=n) for n in range(trials))
        taken = []
        for number in range(trials, trials + ASKED):
            started = time.process_time()
            many.ask(number)
            taken.append(time.process_time() - started)
        return statistics.median(taken)


if __name__ == "__main__":
    main()
