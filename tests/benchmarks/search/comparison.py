"""The comparison of searchers by their costs, paired by seed and averaged over tasks.

With c the cost to a share of the best-known hypervolume: a task's best peer has the lowest
geometric mean of c over the seeds. A searcher's ratio on the task is the geometric mean of its c
over the best peer's at the same seed; its ratio is the geometric mean over tasks.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

RESAMPLES = 2000


@dataclass(frozen=True, kw_only=True)
class Ratio:
    """A searcher's cost over that of the best peer; below 1 is better."""

    mean: float
    low: float
    """The lower end of the interval that holds 95 % of bootstrap resamples."""
    high: float
    """The upper end of it."""
    worst_task: float
    """The ratio on the task where it is highest."""


def ratios(costs: Any, peers: Sequence[int]) -> list[Ratio]:
    """The ratio of every searcher.

    `costs` [tasks, searchers, seeds] are positive, NaN where there is none; `peers` are indices of
    searchers. Each of the bootstrap's resamples draws tasks and, within them, seeds, and chooses
    its best peers anew.
    """
    logs = np.log(costs)
    tasks, searchers, seeds = logs.shape
    random = np.random.default_rng(0)
    once = np.stack([_task_ratios(of_task, peers, np.arange(seeds)[None]) for of_task in logs])
    many = np.stack(
        [_task_ratios(of_task, peers, _draws(random, seeds)) for of_task in logs]
    )  # [tasks, searchers, resamples]
    chosen = random.integers(tasks, size=(RESAMPLES, tasks))
    resampled = many[chosen, :, np.arange(RESAMPLES)[:, None]].mean(axis=1)
    low, high = np.exp(np.nanquantile(resampled, (0.025, 0.975), axis=0))
    by_task = np.exp(once[:, :, 0])
    return [
        Ratio(
            mean=float(np.exp(np.log(by_task[:, searcher]).mean())),
            low=float(low[searcher]),
            high=float(high[searcher]),
            worst_task=float(by_task[:, searcher].max()),
        )
        for searcher in range(searchers)
    ]


def paired(costs: Any, searcher: int, other: int) -> float:
    """The geometric mean over tasks of the ratio of two searchers at the same seeds."""
    differences = np.log(costs[:, searcher]) - np.log(costs[:, other])
    return float(np.exp(np.nanmean(differences, axis=1).mean()))


def _draws(random: np.random.Generator, seeds: int) -> Any:
    return random.integers(seeds, size=(RESAMPLES, seeds))


def _task_ratios(logs: Any, peers: Sequence[int], drawn: Any) -> Any:
    """The log ratios [searchers, resamples] on one task, of `logs` [searchers, seeds].

    `drawn` [resamples, seeds] are the seeds of each resample.
    """
    samples = logs[:, drawn]  # [searchers, resamples, seeds]
    peer_means = _mean(samples[list(peers)])
    best = np.array(peers)[np.nanargmin(np.where(np.isnan(peer_means), np.inf, peer_means), axis=0)]
    best_samples = samples[best, np.arange(len(drawn))]  # [resamples, seeds]
    return _mean(samples - best_samples)


def _mean(values: Any) -> Any:
    """The mean over the last axis of what is known; NaN where nothing is."""
    known = ~np.isnan(values)
    counts = known.sum(axis=-1)
    sums = np.where(known, values, 0.0).sum(axis=-1)
    return np.where(counts > 0, sums / np.maximum(counts, 1), np.nan)
