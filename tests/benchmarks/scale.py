"""Decisions at scale: what a trial takes of time and memory as a sweep grows to 10,000 of them.

The product's own driver, ledger, journal, study and race or halving decide on made-up trials over
six rungs, eight at a time, on a disk. The time is this process's own, forecasts in the background
included, over the last fifth of the trials up to each mark; the memory is what the process grew
by for a trial since the mark before. A sweep is flat whose ratios to the first mark stay near 1.
"""

import multiprocessing
import os
import tempfile
import time
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from orchestrator.search.config import Budget, SearchConfig
from search_spaces.problem import Problem
from search_spaces.ranges import Ranges
from tests.benchmarks.publish import publish
from tests.orchestrator.made_up_sweep import MadeUpSweep

MARKS = (100, 1000, 2000, 5000, 10_000)
"""Trials at which a sweep is looked at."""
WINDOW = 0.2
"""Share of the trials up to a mark whose time is taken."""
BUDGET = Budget(trials=12_500)
"""So large that no sweep comes to its end."""
CONCURRENT = 8
PROBLEM = Problem(
    rungs=tuple(1e9 * 2.15**rung for rung in range(6)),
    native_resolution=32,
    train_images=50_000,
    classes=10,
)
SWEEPS: Mapping[str, tuple[SearchConfig, Ranges]] = {
    "race, model": (SearchConfig(sampler="model", scheduler="race"), {}),
    "race, random, all aim at the top": (
        SearchConfig(sampler="random", scheduler="race"),
        {"target_rung": len(PROBLEM.rungs) - 1},
    ),
    "halving, tpe": (SearchConfig(sampler="tpe", scheduler="halving"), {}),
}


def main() -> None:
    """Runs every sweep in a process of its own and prints the table."""
    context = multiprocessing.get_context("spawn")
    with context.Pool(1, maxtasksperchild=1) as pool:
        rows = [row for name in SWEEPS for row in pool.apply(rows_of, (name,))]
    result = {"rungs": len(PROBLEM.rungs), "concurrent": CONCURRENT, "sweeps": rows}
    publish("scale", title="Decisions at scale", result=result)


def rows_of(name: str) -> list[dict[str, Any]]:
    """The sweep at each mark."""
    warnings.simplefilter("ignore")  # Optuna's experimental parts
    search, ranges = SWEEPS[name]
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        sweep = MadeUpSweep(Path(folder), ranges, search, PROBLEM, concurrent=CONCURRENT)
        sweep.begin(budget=BUDGET)
        known, memory = 0, _memory()
        for mark in MARKS:
            _run_to(sweep, mark - round(WINDOW * mark))
            began, started = len(sweep.ledger), time.process_time()
            _run_to(sweep, mark)
            seconds = (time.process_time() - started) / (len(sweep.ledger) - began)
            grown = (_memory() - memory) / (len(sweep.ledger) - known)
            known, memory = len(sweep.ledger), _memory()
            rows.append(_row(name, mark, 1e3 * seconds, grown, first=rows[0] if rows else None))
            print(rows[-1], flush=True)
    return rows


def _run_to(sweep: MadeUpSweep, trials: int) -> None:
    while len(sweep.ledger) < trials and sweep.step():
        pass


def _row(
    name: str, mark: int, milliseconds: float, grown: float, *, first: Mapping[str, Any] | None
) -> dict[str, Any]:
    return {
        "sweep": name,
        "trials": mark,
        "milliseconds_a_trial": round(milliseconds, 2),
        "ratio": round(milliseconds / first["milliseconds_a_trial"], 2) if first else 1.0,
        "kilobytes_a_trial": round(grown / 1e3, 1),
        "megabytes": round(_memory() / 1e6),
    }


def _memory() -> int:
    """Bytes of memory that the process holds."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


if __name__ == "__main__":
    main()
