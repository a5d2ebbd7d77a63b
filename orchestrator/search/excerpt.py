"""An excerpt of a study's history: as much of it as a sampler reads, however long it has grown."""

from collections.abc import Container, Iterable, Sequence
from typing import Any

import numpy as np
import optuna
from numpy.typing import NDArray
from optuna.samplers import RandomSampler
from optuna.storages import InMemoryStorage
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial
from optuna.trial import TrialState as StudyState

LONGEST = 256
"""Trials of an excerpt at most; a suggestion takes no longer from there on."""
_BEST_SHARE = 8
"""One in so many of them is among the best of the history, and as many are its newest."""


def excerpt(trials: Sequence[FrozenTrial], *, longest: int = LONGEST) -> Sequence[FrozenTrial]:
    """Returns the trials if they are few, else the best, the newest and an even sample of the rest.

    The best are those of the first non-dominated fronts, the last of them thinned by crowding
    distance. Failed trials are left out first, because no sampler learns from them; infeasible and
    running ones keep their share of the sample. `trials` are in order of suggestion, and stay so.
    """
    if len(trials) <= longest:
        return trials
    trials = [trial for trial in trials if trial.state is not StudyState.FAIL]
    if len(trials) <= longest:
        return trials
    share = longest // _BEST_SHARE
    chosen = {trial.number for trial in (*best(trials, share), *trials[-share:])}
    others = [trial for trial in trials if trial.number not in chosen]
    places = longest - len(chosen)
    chosen |= {others[(2 * i + 1) * len(others) // (2 * places)].number for i in range(places)}
    return [trial for trial in trials if trial.number in chosen]


def best(trials: Iterable[FrozenTrial], count: int) -> list[FrozenTrial]:
    """Returns the best of the complete and feasible trials, front after front."""
    feasible = [t for t in trials if t.state is StudyState.COMPLETE and is_feasible(t)]
    if not feasible:
        return []
    values = np.array([trial.values for trial in feasible], dtype=np.float64)
    left = np.lexsort(values.T[::-1])
    chosen: list[int] = []
    while left.size and len(chosen) < count:
        lowest = np.minimum.accumulate(values[left, 1])
        leads = values[left, 1] < np.concatenate([[np.inf], lowest[:-1]])
        front = left[leads]
        chosen += _spread(front, values[front], count - len(chosen))
        left = left[~leads]
    return [feasible[i] for i in chosen]


def study_of(trials: Sequence[FrozenTrial], directions: Sequence[StudyDirection]) -> optuna.Study:
    """Makes a throw-away study that consists of the trials as they are."""
    return optuna.create_study(
        storage=_Shown(trials), directions=directions, sampler=RandomSampler()
    )


def is_feasible(trial: FrozenTrial) -> bool:
    """Tells whether a trial violates no constraint."""
    return not trial.system_attrs or all(value <= 0 for value in trial.constraints.values())


class _Shown(InMemoryStorage):
    """Shows trials that another storage holds, without copying them, and keeps no others."""

    def __init__(self, trials: Sequence[FrozenTrial]) -> None:
        super().__init__()
        self._shown = trials

    def get_all_trials(
        self,
        study_id: int,
        deepcopy: bool = True,  # noqa: FBT001  # Optuna's signature
        states: Container[StudyState] | None = None,
    ) -> list[FrozenTrial]:
        return [trial for trial in self._shown if states is None or trial.state in states]

    def set_trial_system_attr(self, trial_id: int, key: str, value: Any) -> None:
        """Forgets what a sampler notes on the trial that it draws for, which is thrown away."""


def _spread(front: NDArray[np.intp], values: NDArray[np.float64], count: int) -> list[int]:
    """Returns at most `count` of a front in order: its ends and its least crowded points."""
    if len(front) <= count:
        return [int(i) for i in front]
    extent = np.maximum(np.ptp(values, axis=0), np.finfo(np.float64).tiny)
    gaps = np.full(len(front), np.inf)
    gaps[1:-1] = (np.abs(values[2:] - values[:-2]) / extent).sum(axis=1)
    return [int(i) for i in front[np.argsort(-gaps, kind="stable")[:count]]]
