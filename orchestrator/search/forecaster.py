"""The forecaster: a forecast kept up with the field of a race, and what it makes of recipes."""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from functools import lru_cache, partial
from math import isfinite
from threading import Thread
from typing import Any, TypeVar

import numpy as np
from optuna.distributions import BaseDistribution, json_to_distribution

from orchestrator.search.field import Field
from orchestrator.search.forecast import Curve, Floats, Forecast, carried_on, error_of, logit
from orchestrator.store.ledger import TrialRecord, TrialState

T = TypeVar("T")

FEWEST = 8
"""Trials with a point that a forecast is made of at least."""
MOST = 2500
"""Trials that a forecast is made of at most: making it takes no longer however many there are."""
GROWTH = 1.15
"""A new forecast is made when there is so many times as much evidence."""
WORST_ERROR = 1.0
"""The error that a diverged trial counts as having at its aim."""
WORST_LOSS = 1e3
"""Its loss, likewise, in nats."""


class Forecaster:
    """Tells which recipes are expected to gain most, from all that the field has measured."""

    def __init__(self, *, seed: int, growth: float = GROWTH, background: bool = False) -> None:
        """A new forecast is made when the evidence has grown by `growth`; at 1, when it has at all.

        In the `background` it is made by a thread, while the last one serves. The first one never
        is, so that a sweep which goes on knows at once what it knew. A thread at work holds the
        process's end up for less than a second.
        """
        self._seed = seed
        self._growth = growth
        self._background = background
        self._made_of = 0
        self._coming: Future[Forecast | None] | None = None
        self.forecast: Forecast | None = None
        self._levels: Sequence[float] = ()
        self._frontier: Floats = np.zeros(0)

    @property
    def ready(self) -> bool:
        """Whether enough was measured for a forecast."""
        return self.forecast is not None

    def learn(self, field: Field) -> None:
        """Has a new forecast made where the field has grown enough, or takes over the one made.

        Raises what kept the forecast from being made, once; the next is made when the field has
        grown again. Until then there is none, or, if it was the thread that failed, the last one.
        """
        self._levels = field.levels
        self._frontier = field.frontier()
        if self._coming is not None:
            if not self._coming.done():
                return
            coming, self._coming = self._coming, None
            self.forecast = coming.result()
        if self._is_up_to_date(field.evidence):
            return
        self._made_of = field.evidence
        make = partial(_forecast, tuple(field.trials()), seed=self._seed)
        if self._background and self.ready:
            self._coming = _in_a_thread(make)
        else:
            self.forecast = None
            self.forecast = make()

    def _is_up_to_date(self, evidence: int) -> bool:
        """Tells whether there is too little evidence for a forecast, or for a better one."""
        if evidence < FEWEST or evidence == self._made_of:
            return True
        return evidence < self._growth * self._made_of

    def gains(self, recipes: Sequence[Mapping[str, Any]]) -> Floats:
        """Expected hypervolume that new recipes add: [recipes], in rungs times error."""
        return self._gain(self._logits(recipes), lowest=0)

    def best_ranks(self, recipes: Sequence[Mapping[str, Any]]) -> Floats:
        """The best rank, from 0, that each recipe is expected to have at any rung: [recipes]."""
        expected = self._logits(recipes).mean(axis=0)
        ranks: Floats = expected.argsort(axis=0).argsort(axis=0).min(axis=1).astype(float)
        return ranks

    def further_gains(self, trials: Sequence[TrialRecord], *, rung: int) -> Floats:
        """Expected hypervolume that trials add which go on from below `rung`: [trials]."""
        logits = self._logits([trial.params for trial in trials])
        measured = logit(np.array([trial.measurements[-1].val_error for trial in trials]))
        at = [min(rung - 1, trial.measurements[-1].rung) for trial in trials]
        return self._gain(carried_on(logits, measured, at), lowest=rung)

    def _logits(self, recipes: Sequence[Mapping[str, Any]]) -> Floats:
        """Logits of the error at every rung: [trees, recipes, rungs]."""
        assert self.forecast is not None  # asked only when it is ready
        return self.forecast.logits(recipes, self._levels)

    def _gain(self, logits: Floats, *, lowest: int) -> Floats:
        errors = np.minimum.accumulate(error_of(logits[:, :, lowest:]), axis=2)
        frontier = self._frontier[lowest : lowest + errors.shape[2]]
        gains: Floats = np.maximum(0.0, frontier - errors).sum(axis=2).mean(axis=0)
        return gains


def _in_a_thread(make: Callable[[], T]) -> "Future[T]":
    """Returns at once; the future has what `make` returns or raises when it is done."""
    future: Future[T] = Future()

    def run() -> None:
        try:
            future.set_result(make())
        except BaseException as error:
            future.set_exception(error)

    Thread(target=run, name="forecast").start()
    return future


def _forecast(trials: Sequence[TrialRecord], *, seed: int) -> Forecast | None:
    """Makes a forecast of the trials; None where they have too few points."""
    curves = [curve for trial in _sample(trials) if (curve := _curve(trial)) is not None]
    if sum(len(curve.points) for curve in curves) < FEWEST:
        return None
    return Forecast(curves, seed=seed)


def _sample(trials: Sequence[TrialRecord]) -> Sequence[TrialRecord]:
    """All trials if they are few, else those that went furthest and an even sample of the rest."""
    if len(trials) <= MOST:
        return trials
    known = [t for t in trials if t.measurements or t.state is TrialState.DIVERGED]
    by_reach = sorted(known, key=_reach, reverse=True)
    rest = sorted(by_reach[MOST // 2 :], key=_number)
    spread = np.linspace(0, len(rest) - 1, min(len(rest), MOST - MOST // 2)).astype(int)
    return sorted([*by_reach[: MOST // 2], *(rest[place] for place in spread)], key=_number)


def _reach(trial: TrialRecord) -> tuple[int, int]:
    """The rung at which the trial was measured last, and its number: later ones come first."""
    return trial.measurements[-1].rung if trial.measurements else -1, trial.number


def _number(trial: TrialRecord) -> int:
    return trial.number


def _curve(trial: TrialRecord) -> Curve | None:
    points = [
        (m.train_flops, m.val_error, m.val_loss)
        for m in trial.measurements
        if isfinite(m.val_error) and isfinite(m.val_loss)
    ]
    if trial.state is TrialState.DIVERGED:
        points = [*points, (trial.recipe.target_flops, WORST_ERROR, WORST_LOSS)]
    if not points:
        return None
    return Curve(
        params=trial.params,
        distributions={n: _distribution(text) for n, text in trial.distributions.items()},
        target_flops=trial.recipe.target_flops,
        points=points,
    )


@lru_cache(maxsize=4096)
def _distribution(text: str) -> BaseDistribution:
    distribution: BaseDistribution = json_to_distribution(text)
    return distribution
