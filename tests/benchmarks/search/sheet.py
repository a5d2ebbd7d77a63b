"""A sheet of the benchmark: the scores of one kind of tasks and number of workers, summed up."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any

import numpy as np

from tests.benchmarks.search.comparison import paired, ratios
from tests.benchmarks.search.score import BUDGETS, SHARES
from tests.benchmarks.search.searchers import LADDER, PEER_NAMES, SEARCHERS

Line = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Replayed:
    """The score of one replay, as JSON has it."""

    task: str
    searcher: str
    seed: int
    workers: int
    budget: float
    score: Mapping[str, Any]
    """The fields of `score.Score`, with keys as text and null for a cost never reached."""


@dataclass(frozen=True, kw_only=True)
class Sheet:
    """The lines of the published tables, each with the sheet's name and workers."""

    name: str
    workers: int
    replays: Sequence[Replayed]

    @property
    def tasks(self) -> list[str]:
        """The tasks, in alphabetical order."""
        return sorted({replay.task for replay in self.replays})

    @property
    def searchers(self) -> list[str]:
        """The searchers, in the order in which they are defined."""
        present = {replay.searcher for replay in self.replays}
        return [name for name in SEARCHERS if name in present]

    def ratios(self) -> Iterator[Line]:
        """Each searcher's cost over that of the best peer, for every share."""
        peers = [at for at, name in enumerate(self.searchers) if name in PEER_NAMES]
        if not peers:
            return
        for share in SHARES:
            costs = self.costs(share)
            for searcher, ratio in zip(self.searchers, ratios(costs, peers), strict=True):
                never = [r.score["runs_to"][f"{share:g}"] is None for r in self._of(searcher)]
                yield {
                    **self._head(searcher),
                    "to": f"{share:g}",
                    **{name: _short(value) for name, value in asdict(ratio).items()},
                    "never": _short(fmean(never)),
                }

    def ladder(self) -> Iterator[Line]:
        """The steps from the product as it stood, each by its cost over the first's."""
        steps = [name for name in LADDER if name in self.searchers]
        for step in steps:
            at, first = self.searchers.index(step), self.searchers.index(steps[0])
            over = {f"to_{s:g}": _short(paired(self.costs(s), at, first)) for s in SHARES}
            yield {**self._head(step), **over, **self._shares_at(step)}

    def ends(self) -> Iterator[Line]:
        """The state at the budget's end, and the shares on the way."""
        for searcher in self.searchers:
            yield {
                **self._head(searcher),
                **{
                    name: self._mean(searcher, name)
                    for name in ("end", "cost", "top_third", "regret")
                },
                **self._shares_at(searcher),
            }

    def leads(self) -> Iterator[Line]:
        """The lead of each searcher over the best peer of each task, on average and at worst.

        Shares at every cost and at the end; the regret of the worst rung counts as better the
        lower it is.
        """
        if not PEER_NAMES & set(self.searchers):
            return
        states = {
            task: {name: self._state(name, task) for name in self.searchers} for task in self.tasks
        }
        for searcher in self.searchers:
            over = {}
            for name in states[self.tasks[0]][searcher]:
                over[name] = [
                    of_task[searcher][name]
                    - max(of_task[peer][name] for peer in of_task if peer in PEER_NAMES)
                    for of_task in states.values()
                ]
            for kind, of in (("mean", fmean), ("worst", min)):
                lead = {name: round(of(values), 3) for name, values in over.items()}
                yield {**self._head(searcher), "over_tasks": kind, **lead}

    def by_task(self) -> Iterator[Line]:
        """The geometric mean of each searcher's costs on every task."""
        for row, task in enumerate(self.tasks):
            for column, searcher in enumerate(self.searchers):
                logs = {s: np.log(self.costs(s)[row, column]) for s in SHARES}
                yield {
                    "task": task,
                    **self._head(searcher),
                    **{f"to_{s:g}": _short(np.exp(np.nanmean(logs[s]))) for s in SHARES},
                }

    def shares(self, costs: Sequence[float]) -> dict[str, list[float]]:
        """The mean share at each of the costs, by searcher."""
        along = {}
        for searcher in self.searchers:
            held = [replay.score["share_at"] for replay in self._of(searcher)]
            along[searcher] = [fmean(share[f"{cost:g}"] for share in held) for cost in costs]
        return along

    def costs(self, share: float) -> Any:
        """Costs to a share [tasks, searchers, seeds]; at most, or if never, twice the budget."""
        seeds = 1 + max(replay.seed for replay in self.replays)
        costs = np.full((len(self.tasks), len(self.searchers), seeds), np.nan)
        for replay in self.replays:
            runs = replay.score["runs_to"][f"{share:g}"]
            at = self.tasks.index(replay.task), self.searchers.index(replay.searcher), replay.seed
            never = 2 * replay.budget
            costs[at] = never if runs is None else min(runs, never)
        return costs

    def _head(self, searcher: str) -> Line:
        return {"tasks": self.name, "workers": self.workers, "searcher": searcher}

    def _of(self, searcher: str) -> list[Replayed]:
        return [replay for replay in self.replays if replay.searcher == searcher]

    def _state(self, searcher: str, task: str) -> dict[str, float]:
        """The searcher's shares on one task, higher being better."""
        scores = [r.score for r in self._of(searcher) if r.task == task]
        at = {f"at_{c:g}": fmean(s["share_at"][f"{c:g}"] for s in scores) for c in BUDGETS}
        ends = {name: fmean(s[name] for s in scores) for name in ("end", "top_third")}
        return at | ends | {"regret": -fmean(s["regret"] for s in scores)}

    def _mean(self, searcher: str, name: str) -> float:
        return _short(fmean(replay.score[name] for replay in self._of(searcher)))

    def _shares_at(self, searcher: str) -> Line:
        held = [replay.score["share_at"] for replay in self._of(searcher)]
        return {f"at_{cost:g}": _short(fmean(h[f"{cost:g}"] for h in held)) for cost in BUDGETS}


def _short(value: float) -> float:
    return float(f"{value:.3g}")
