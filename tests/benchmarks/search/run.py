"""Replays searches and prints what each had found at what cost.

    python -m tests.benchmarks.search.run --tasks gtsrb --searchers before,race_model --seeds 3

`recorded` and `taskset` stand for all tasks of their kind, `all` for every searcher. Costs are in
full-length runs and count training and evaluation; the budget, as a sweep's, counts training. A
cost that was never reached counts as twice the budget in the (geometric) mean, and the number of
such seeds follows it in brackets.
"""

import argparse
import functools
import time
from collections.abc import Iterable, Sequence
from math import isinf
from statistics import fmean

from tests.benchmarks.search.jobs import Job, each, replayed, searchers_of, table_of, tasks_of
from tests.benchmarks.search.score import BUDGETS, SHARES, Cost, HeldOut, Score, Scorer, mean_cost


def main() -> None:
    """Runs what the command line names and prints a table for every task."""
    arguments = _arguments()
    tasks, searchers = tasks_of(arguments.tasks), searchers_of(arguments.searchers)
    run = functools.partial(scored, on=HeldOut(arguments.score), cost=Cost(arguments.cost))
    jobs = [
        Job(task, searcher, seed, arguments.workers, arguments.budget)
        for task in tasks
        for searcher in searchers
        for seed in range(arguments.seeds)
    ]
    results: dict[str, list[tuple[Score, float]]] = {}
    for job, result in each(run, jobs, at_once=arguments.jobs):
        results.setdefault(job.searcher, []).append(result)
        if sum(map(len, results.values())) == len(searchers) * arguments.seeds:
            print(_table(job.task, results, arguments.budget), flush=True)
            results.clear()


def scored(job: Job, *, on: HeldOut, cost: Cost) -> tuple[Score, float]:
    """The score of one replay and the seconds that it took."""
    started = time.perf_counter()
    events = replayed(job)
    took = time.perf_counter() - started
    return Scorer(table_of(job.task), on=on, cost=cost).score(events), took


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Replays searches over recorded curves.")
    parser.add_argument("--tasks", default="recorded,taskset")
    parser.add_argument("--searchers", default="all")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument(
        "--budget", type=float, default=20.0, help="training FLOPs, in full-length runs"
    )
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--score", default=HeldOut.B.value, choices=list(HeldOut))
    parser.add_argument("--cost", default=Cost.ALL.value, choices=list(Cost))
    return parser.parse_args()


def _table(task: str, results: dict[str, list[tuple[Score, float]]], budget: float) -> str:
    shown = [cost for cost in BUDGETS if cost <= budget]
    head = ["searcher", *(f"to {s:.0%}" for s in SHARES), *(f"@{b:g}" for b in shown)]
    head += ["end", "cost", "top3rd", "regret", "recipes", "measured at each rung", "sim s", "s"]
    rows = [head]
    for searcher, scores in results.items():
        took = fmean(seconds for _, seconds in scores)
        cells = _cells([score for score, _ in scores], shown, budget)
        rows.append([searcher, *cells, f"{took:.1f}"])
    widths = [max(len(row[column]) for row in rows) for column in range(len(head))]
    lines = ["  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)) for row in rows]
    return "\n".join([f"\n{task} ({len(table_of(task).entries)} recipes)", *lines])


def _cells(scores: Sequence[Score], budgets: Iterable[float], budget: float) -> list[str]:
    cells = []
    for share in SHARES:
        costs = [score.runs_to[share] for score in scores]
        missed = sum(map(isinf, costs))
        cells.append(f"{mean_cost(costs, budget=budget):.2f}" + (f" ({missed})" if missed else ""))
    cells += [f"{fmean(score.share_at[cost] for score in scores):.3f}" for cost in budgets]
    cells += [f"{fmean(score.end for score in scores):.3f}"]
    cells += [f"{fmean(score.cost for score in scores):.1f}"]
    cells += [f"{fmean(getattr(s, name) for s in scores):.3f}" for name in ("top_third", "regret")]
    cells += [f"{fmean(score.recipes for score in scores):.0f}"]
    measured = zip(*(score.measured for score in scores), strict=True)
    cells += [" ".join(f"{fmean(at):.0f}" for at in measured)]
    return [*cells, f"{fmean(score.seconds for score in scores):.0f}"]


if __name__ == "__main__":
    main()
