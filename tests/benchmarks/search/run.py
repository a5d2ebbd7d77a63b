"""Replays searches and prints what each had found at what cost.

    python -m tests.benchmarks.search.run --tasks gtsrb,taskset --searchers shipped,random --seeds 5

`recorded` and `taskset` stand for all tasks of their kind, `all` for every searcher. Costs are in
full-length runs. A cost that was never reached counts as twice the budget in the (geometric) mean,
and the number of such seeds follows it in brackets.
"""

import argparse
import functools
import tempfile
import time
import warnings
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from math import isinf
from pathlib import Path
from statistics import fmean
from typing import NamedTuple

from threadpoolctl import threadpool_limits

from tests.benchmarks.search.replay import Event, Setting
from tests.benchmarks.search.score import BUDGETS, SHARES, Cost, HeldOut, Score, Scorer, mean_cost
from tests.benchmarks.search.searchers import SEARCHERS
from tests.benchmarks.search.tables import CurveTable, load_table, recorded_tasks, taskset_tasks

_MEMORY = Path("/dev/shm")


class Job(NamedTuple):
    """One search to replay."""

    task: str
    searcher: str
    seed: int
    workers: int
    budget: float
    """In full-length runs."""


def main() -> None:
    """Runs what the command line names and prints a table for every task."""
    arguments = _arguments()
    jobs = [
        Job(task, searcher, seed, arguments.workers, arguments.budget)
        for task in tasks_of(arguments.tasks)
        for seed in range(arguments.seeds)
        for searcher in _searchers(arguments.searchers)
    ]
    scores: dict[tuple[str, str], list[tuple[Score, float]]] = {}
    run = functools.partial(scored, on=HeldOut(arguments.score), cost=Cost(arguments.cost))
    with ProcessPoolExecutor(arguments.jobs, initializer=_alone) as executor:
        for job, result in zip(jobs, executor.map(run, jobs), strict=True):
            scores.setdefault((job.task, job.searcher), []).append(result)
            last = job == jobs[-1] or jobs[jobs.index(job) + 1].task != job.task
            if last:
                print(_table(job.task, scores, arguments.budget), flush=True)


def scored(job: Job, *, on: HeldOut, cost: Cost) -> tuple[Score, float]:
    """The score of one replay and the seconds that it took."""
    started = time.perf_counter()
    events = replayed(job)
    took = time.perf_counter() - started
    return Scorer(table_of(job.task), on=on, cost=cost).score(events, budget=job.budget), took


def replayed(job: Job) -> list[Event]:
    """The measurements of one search."""
    table = table_of(job.task)
    warnings.simplefilter("ignore")  # Optuna's experimental samplers
    with tempfile.TemporaryDirectory(dir=_MEMORY if _MEMORY.exists() else None) as folder:
        setting = Setting(
            table=table,
            seed=job.seed,
            workers=job.workers,
            budget_flops=job.budget * table.levels[-1],
            folder=Path(folder),
        )
        return SEARCHERS[job.searcher](setting)


def _alone() -> None:
    """Keeps a process to one core, because there is one process for each."""
    threadpool_limits(1)


@functools.lru_cache(maxsize=2)
def table_of(task: str) -> CurveTable:
    """The task's table, read once a process."""
    return load_table(task)


def tasks_of(names: str) -> list[str]:
    """The tasks that a comma-separated list means; part of a name is enough if it is unique."""
    known = (*recorded_tasks(), *taskset_tasks())
    groups = {"recorded": recorded_tasks(), "taskset": taskset_tasks()}
    found: dict[str, None] = {}
    for name in names.split(","):
        meant = groups.get(name) or [task for task in known if name in task]
        if not meant:
            raise SystemExit(f"{name!r} is no task; they are {', '.join((*groups, *known))}.")
        found.update(dict.fromkeys(meant))
    return list(found)


def _searchers(names: str) -> list[str]:
    wanted = list(SEARCHERS) if names == "all" else names.split(",")
    if unknown := [name for name in wanted if name not in SEARCHERS]:
        raise SystemExit(f"{unknown[0]!r} is no searcher; they are {', '.join(SEARCHERS)}.")
    return wanted


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Replays searches over recorded curves.")
    parser.add_argument("--tasks", default="recorded,taskset")
    parser.add_argument("--searchers", default="all")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--budget", type=float, default=20.0, help="in full-length runs")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--score", default=HeldOut.B.value, choices=list(HeldOut))
    parser.add_argument("--cost", default=Cost.ALL.value, choices=list(Cost))
    return parser.parse_args()


def _table(
    task: str, scores: dict[tuple[str, str], list[tuple[Score, float]]], budget: float
) -> str:
    entries = table_of(task).entries
    shown = [b for b in BUDGETS if b <= budget]
    head = ["searcher", *(f"to {s:.0%}" for s in SHARES), *(f"@{b:g}" for b in shown)]
    head += ["end", "top3rd", "regret", "recipes", "measured at each rung", "sim s", "s"]
    rows = [head]
    for (of, searcher), results in scores.items():
        if of == task:
            rows.append([searcher, *_cells([r for r, _ in results], shown, budget)])
            rows[-1].append(f"{fmean(took for _, took in results):.1f}")
    widths = [max(len(row[column]) for row in rows) for column in range(len(head))]
    lines = ["  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)) for row in rows]
    return "\n".join([f"\n{task} ({len(entries)} recipes)", *lines])


def _cells(scores: Sequence[Score], budgets: Iterable[float], budget: float) -> list[str]:
    cells = []
    for share in SHARES:
        costs = [score.runs_to[share] for score in scores]
        missed = sum(map(isinf, costs))
        cells.append(f"{mean_cost(costs, budget=budget):.2f}" + (f" ({missed})" if missed else ""))
    cells += [f"{fmean(score.share_at[cost] for score in scores):.3f}" for cost in budgets]
    cells += [f"{fmean(getattr(s, name) for s in scores):.3f}" for name in ("end", "top_third")]
    cells += [f"{fmean(score.regret for score in scores):.3f}"]
    cells += [f"{fmean(score.recipes for score in scores):.0f}"]
    measured = zip(*(score.measured for score in scores), strict=True)
    cells += [" ".join(f"{fmean(at):.0f}" for at in measured)]
    return [*cells, f"{fmean(score.seconds for score in scores):.0f}"]


if __name__ == "__main__":
    main()
