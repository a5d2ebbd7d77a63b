"""Jobs: searches to replay, by names, each in a process of its own core."""

import functools
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import NamedTuple, TypeVar

from threadpoolctl import threadpool_limits

from tests.benchmarks.search.replay import Event, Setting
from tests.benchmarks.search.searchers import SEARCHERS
from tests.benchmarks.search.tables import CurveTable, load_table, recorded_tasks, taskset_tasks

_MEMORY = Path("/dev/shm")
"""Where a search keeps its files, if there is such a place."""

T = TypeVar("T")


class Job(NamedTuple):
    """One search to replay."""

    task: str
    searcher: str
    seed: int
    workers: int
    budget: float
    """Training FLOPs, in full-length runs."""


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


def each(work: Callable[[Job], T], jobs: Sequence[Job], *, at_once: int) -> Iterator[tuple[Job, T]]:
    """The jobs with what `work` makes of them, in order."""
    with ProcessPoolExecutor(at_once, initializer=_alone) as executor:
        yield from zip(jobs, executor.map(work, jobs), strict=True)


@functools.lru_cache(maxsize=4)
def table_of(task: str) -> CurveTable:
    """The task's table, read once a process."""
    return load_table(task)


def tasks_of(names: str) -> list[str]:
    """The tasks that a comma-separated list means; a part of a name means all that have it."""
    known = (*recorded_tasks(), *taskset_tasks())
    groups = {"recorded": recorded_tasks(), "taskset": taskset_tasks()}
    found: dict[str, None] = {}
    for name in names.split(","):
        meant = groups[name] if name in groups else [task for task in known if name in task]
        if not meant:
            raise SystemExit(f"{name!r} is no task; they are {', '.join((*groups, *known))}.")
        found.update(dict.fromkeys(meant))
    return list(found)


def searchers_of(names: str) -> list[str]:
    """The searchers that a comma-separated list means; `all` means every one."""
    wanted = list(SEARCHERS) if names == "all" else names.split(",")
    if unknown := [name for name in wanted if name not in SEARCHERS]:
        raise SystemExit(f"{unknown[0]!r} is no searcher; they are {', '.join(SEARCHERS)}.")
    return wanted


def _alone() -> None:
    """Keeps a process to one core, because there is one process for each."""
    threadpool_limits(1)
