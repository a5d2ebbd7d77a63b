"""Multi-objective TPE: values are drawn near those of the better trials."""

from typing import Any

import optuna
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler, TPESampler
from optuna.trial import TrialState as StudyState

from orchestrator.search.excerpt import excerpt
from orchestrator.search.history_draws import HistoryDraws
from orchestrator.search.sampler import MakeDraws

LONGEST = 128
"""Trials that TPE sees at most: it sorts them anew for every parameter."""


def tpe(*, startup_trials: int) -> MakeDraws:
    """Draws by univariate multi-objective TPE (Ozaki et al. 2022, as Optuna has it).

    Trials still running count as bad nearby ("constant liar"), so that parallel trials spread;
    infeasible ones count as violating a constraint, failed ones not at all. `startup_trials` must
    have finished before TPE takes over from random draws: it calls the best tenth of the trials
    good, so it has nothing to aim at before the tenth. Of a long history it sees an excerpt.
    """
    if startup_trials < 1:
        raise ValueError(
            f"startup_trials={startup_trials!r} must be at least 1; "
            "TPE has nothing to learn from before."
        )

    def draws(history: optuna.Study, seed: int) -> BaseSampler:
        return _TPEDraws(history, seed=seed, startup_trials=startup_trials)

    return draws


class _TPEDraws(HistoryDraws):
    def __init__(self, history: optuna.Study, *, seed: int, startup_trials: int) -> None:
        trials = history.get_trials(deepcopy=False)
        super().__init__(history, excerpt(trials, longest=LONGEST), seed=seed)
        complete = sum(trial.state is StudyState.COMPLETE for trial in trials)
        # Univariate: conditional parameters are sampled as well as any, and it found better
        # frontiers than multivariate TPE in simulation.
        self._tpe = TPESampler(
            n_startup_trials=0 if complete >= startup_trials else startup_trials,
            multivariate=False,
            seed=seed,
        )

    def sampled(self, name: str, distribution: BaseDistribution) -> Any:
        return self._tpe.sample_independent(self.history, self.newcomer, name, distribution)
