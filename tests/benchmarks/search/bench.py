"""The benchmark of the search: every searcher on every task, and how it compares to the best peer.

    make bench-search                                   # resumes; hours on two cores
    make bench-search WITH="--seeds 3 --searchers before,race_model --tasks taskset"
    make bench-search WITH="--again race_model"         # the race has changed: replay it anew

Scores are kept in `runs/bench-search/scores.jsonl`, a line a replay, and summed up in
`tests/benchmarks/results/search.json` and `search.svg`. A table that has grown since makes its
scores stale: they are replayed again. Slow peers get fewer seeds.
"""

import argparse
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from math import isinf
from pathlib import Path
from typing import Any

import numpy as np

from tests.benchmarks.publish import publish
from tests.benchmarks.search.figure import draw_shares
from tests.benchmarks.search.jobs import Job, each, replayed, searchers_of, table_of, tasks_of
from tests.benchmarks.search.score import BUDGETS, Cost, HeldOut, Scorer
from tests.benchmarks.search.searchers import SLOW
from tests.benchmarks.search.sheet import Replayed, Sheet
from tests.benchmarks.search.tables import CurveTable, recorded_tasks
from tests.checkout import ROOT

SCORES = ROOT / "runs" / "bench-search" / "scores.jsonl"
FIGURE = Path(__file__).parents[1] / "results" / "search.svg"
BUDGET = 20.0
"""Training FLOPs that a search may spend, in full-length runs; evaluation comes on top."""
SEEDS = 20
SLOW_SEEDS = 3
"""Seeds of the peers that take minutes a search."""
WORKERS = (1, 16)
SEEDS_AT_ONCE = 5
"""Seeds after which the next task is taken up, so that early results are of all tasks."""
GRID = tuple(float(f"{cost:.3g}") for cost in np.geomspace(0.1, BUDGET, 24))
"""Costs at which the figure's shares are told."""
WAYS = tuple((cost, on) for cost in Cost for on in (HeldOut.B, HeldOut.BOTH))
"""The ways in which a replay is scored."""

Row = dict[str, Any]


def main() -> None:
    """Replays what is missing and publishes the comparison."""
    arguments = _arguments()
    tasks = tasks_of(arguments.tasks)
    prints = {task: fingerprint(table_of(task)) for task in tasks}
    wanted = _jobs(tasks, searchers_of(arguments.searchers), arguments.seeds)
    known = _kept(prints, again=arguments.again.split(","))
    missing = [job for job in wanted if job not in known]
    SCORES.parent.mkdir(parents=True, exist_ok=True)
    with SCORES.open("a", encoding="utf-8") as file:
        for done, (job, scores) in enumerate(each(scored, missing, at_once=arguments.jobs), 1):
            known[job] = scores
            row = {**job._asdict(), "table": prints[job.task], "scores": scores}
            file.write(json.dumps(row) + "\n")
            file.flush()
            print(f"{done}/{len(missing)} {job.task} {job.searcher} {job.seed}", flush=True)
    sheets = sheets_of({job: known[job] for job in wanted}, as_scored=arguments.scored_as)
    result = {
        "budget_runs": BUDGET,
        "scored_as": arguments.scored_as,
        "ratios": [line for sheet in sheets for line in sheet.ratios()],
        "leads": [line for sheet in sheets for line in sheet.leads()],
        "ladder": [line for sheet in sheets for line in sheet.ladder()],
        "ends": [line for sheet in sheets for line in sheet.ends()],
        "tasks": [line for sheet in sheets if sheet.name != "all" for line in sheet.by_task()],
    }
    publish("search", title="Searches over recorded curves", result=result)
    draw_shares([sheet for sheet in sheets if sheet.name != "all"], GRID, FIGURE)


def scored(job: Job) -> Row:
    """The scores of one replay, by the way of scoring."""
    events = replayed(job)
    scores: Row = {}
    for cost, on in WAYS:
        scorer = Scorer(table_of(job.task), on=on, cost=cost, told_at=(*BUDGETS, *GRID))
        score = asdict(scorer.score(events))
        score["runs_to"] = {
            f"{share:g}": None if isinf(runs) else round(runs, 4)
            for share, runs in score["runs_to"].items()
        }
        score["share_at"] = {f"{c:g}": round(v, 4) for c, v in score["share_at"].items()}
        scores[_way(cost, on)] = score
    return scores


def sheets_of(scores: Mapping[Job, Row], *, as_scored: str) -> list[Sheet]:
    """The replays by kind of task, and all together, for each number of workers."""
    replays = [Replayed(**job._asdict(), score=of_job[as_scored]) for job, of_job in scores.items()]
    recorded = recorded_tasks()
    groups = {
        "recorded": [replay for replay in replays if replay.task in recorded],
        "taskset": [replay for replay in replays if replay.task not in recorded],
        "all": replays,
    }
    return [
        Sheet(name=name, workers=workers, replays=[r for r in group if r.workers == workers])
        for name, group in groups.items()
        for workers in WORKERS
        if any(replay.workers == workers for replay in group)
    ]


def fingerprint(table: CurveTable) -> str:
    """Hex digits that depend on every error of the table."""
    digest = hashlib.sha256()
    for key, curve in sorted(table.curves.items()):
        errors = [(point.measurement.val_error, point.error_b) for point in curve.points]
        digest.update(repr((key, curve.outcome.value, errors)).encode())
    return digest.hexdigest()[:12]


def _jobs(tasks: Sequence[str], searchers: Sequence[str], seeds: int) -> list[Job]:
    return [
        Job(task, searcher, seed, workers, BUDGET)
        for first in range(0, seeds, SEEDS_AT_ONCE)
        for workers in WORKERS
        for task in tasks
        for searcher in searchers
        for seed in range(first, min(first + SEEDS_AT_ONCE, seeds))
        if searcher not in SLOW or seed < SLOW_SEEDS
    ]


def _kept(prints: Mapping[str, str], *, again: Sequence[str]) -> dict[Job, Row]:
    """The scores of earlier replays that still hold, which alone stay in the file."""
    if not SCORES.exists():
        return {}
    lines = SCORES.read_text(encoding="utf-8").split("\n")[:-1]  # a kill tears the last one
    rows = [json.loads(line) for line in lines]
    rows = [
        row
        for row in rows
        if row["searcher"] not in again and row["table"] == prints.get(row["task"], row["table"])
    ]
    SCORES.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return {Job(*(row[name] for name in Job._fields)): row["scores"] for row in rows}


def _way(cost: Cost, on: HeldOut) -> str:
    return f"{cost.value}_{on.value}"


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Compares searches over recorded curves.")
    parser.add_argument("--tasks", default="recorded,taskset")
    parser.add_argument("--searchers", default="all")
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--again", default="", help="searchers to replay anew")
    parser.add_argument("--scored-as", default="all_b", choices=[_way(*way) for way in WAYS])
    return parser.parse_args()


if __name__ == "__main__":
    main()
