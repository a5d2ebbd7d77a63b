"""Gaussian processes: values are drawn where they promise most hypervolume."""

from collections.abc import Sequence
from copy import copy
from typing import TYPE_CHECKING, Any

import numpy as np
import optuna
from numpy.typing import NDArray
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler, GPSampler
from optuna.trial import FrozenTrial
from optuna.trial import TrialState as StudyState

from orchestrator.search.excerpt import excerpt
from orchestrator.search.history_draws import HistoryDraws, offers
from orchestrator.search.sampler import MakeDraws
from orchestrator.search.study import CONSTRAINTS, VIOLATED

if TYPE_CHECKING:
    from optuna._gp.acqf import BaseAcquisitionFunc

Floats = NDArray[np.float64]

LONGEST = 96
"""Trials that a Gaussian process is fitted to at most: the time it takes grows with their cube."""
CANDIDATES = 256
"""Recipes of which the one with the most expected hypervolume is drawn."""
KEPT_SHARE = 0.75
"""Share of its values that a candidate has from a trial on the frontier, where it has any."""


def gp(*, startup_trials: int) -> MakeDraws:
    """Draws where Gaussian processes expect most hypervolume (logEHVI, as Optuna has it).

    They model the parameters that all finished trials have, in the same ranges; others are drawn
    at random, as is everything until `startup_trials` have finished. Trials that still run count
    with the values that are expected of them, infeasible ones as violating a constraint, failed
    ones not at all. Of a long history they see an excerpt.
    """
    if startup_trials < 2:
        raise ValueError(
            f"startup_trials={startup_trials!r} must be at least 2; "
            "a Gaussian process has nothing to compare before."
        )

    def draws(history: optuna.Study, seed: int) -> BaseSampler:
        return _GPDraws(history, seed=seed, startup_trials=startup_trials)

    return draws


class _GPDraws(HistoryDraws):
    def __init__(self, history: optuna.Study, *, seed: int, startup_trials: int) -> None:
        trials = history.get_trials(deepcopy=False)
        seen = _comparable(excerpt(trials, longest=LONGEST))
        super().__init__(history, seen, seed=seed)
        complete = sum(trial.state is StudyState.COMPLETE for trial in trials)
        self._drawn = self._draw(seed) if complete >= startup_trials else {}

    def sampled(self, name: str, distribution: BaseDistribution) -> Any:
        if name in self._drawn and offers(distribution, self._drawn[name]):
            return self._drawn[name]
        return self._random.sample_independent(self.history, self.newcomer, name, distribution)

    def _draw(self, seed: int) -> dict[str, Any]:
        """Draws the values of the parameters that are modelled."""
        sampler = _GP(seed=seed, n_startup_trials=2)  # fewer, where all the others run
        space = sampler.infer_relative_search_space(self.history, self.newcomer)
        return sampler.sample_relative(self.history, self.newcomer, space)


class _GP(GPSampler):
    """Chooses among candidates, half of them mixed with the values of trials on the frontier.

    Optuna's own local search takes half a minute a suggestion over the choices of a joint space.
    """

    def _optimize_acqf(self, acqf: "BaseAcquisitionFunc", best_params: Floats | None) -> Floats:
        rng = self._rng.rng
        candidates = acqf.search_space.sample_normalized_params(CANDIDATES, rng=rng)
        if best_params is not None:
            half = CANDIDATES // 2
            parents = best_params[rng.randint(len(best_params), size=half)]
            kept = rng.random_sample(parents.shape) < KEPT_SHARE
            candidates[:half] = np.where(kept, parents, candidates[:half])
        chosen: Floats = candidates[np.argmax(acqf.eval_acqf_no_grad(candidates))]
        return chosen


def _comparable(trials: Sequence[FrozenTrial]) -> Sequence[FrozenTrial]:
    """Gives every trial a constraint if one has any, because Optuna then models that of all."""
    if not any(trial.constraints for trial in trials):
        return trials
    return [trial if trial.constraints else _feasible(trial) for trial in trials]


def _feasible(trial: FrozenTrial) -> FrozenTrial:
    """Gives a trial a constraint that it meets as clearly as infeasible ones violate it."""
    feasible = copy(trial)
    feasible.system_attrs = {
        **trial.system_attrs,
        CONSTRAINTS: [-violation for violation in VIOLATED],
    }
    return feasible
