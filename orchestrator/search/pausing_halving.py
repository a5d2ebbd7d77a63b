"""Asynchronous successive halving at equal compute, in its pausing form."""

from collections.abc import Sequence
from math import floor, isfinite

from orchestrator.search.halving import check_reduction_factor
from orchestrator.search.strategy import GO_ON, Decision, ErrorsAt, Standing, Verdict
from orchestrator.store.ledger import TrialRecord


class PausingHalving:
    """Pauses trials at every rung and goes on with the best of the paused.

    The promotion form of asynchronous successive halving (arXiv 1810.05934): of the n trials
    measured at a rung so far, the best floor(n / reduction_factor) may leave it. One that arrives
    among them trains on; any other is paused and stays a candidate, because later arrivals make
    places. A free worker goes on with the best such trial of the highest rung and draws a new
    recipe only where there is none.
    """

    def __init__(self, *, reduction_factor: float) -> None:
        check_reduction_factor(reduction_factor)
        self._reduction_factor = reduction_factor

    def judge(self, standing: Standing) -> Verdict:
        """Pauses the trial unless it is among the best; one with an error not finite pauses."""
        error = standing.measurement.val_error
        if standing.over or self._may_leave(error, standing.peers):
            return GO_ON
        return Verdict(decision=Decision.PAUSE)

    def resume(self, paused: Sequence[TrialRecord], errors_at: ErrorsAt) -> TrialRecord | None:
        """The best paused trial that may leave its rung, from the highest such rung."""
        for rung in sorted({trial.measurements[-1].rung for trial in paused}, reverse=True):
            peers = list(errors_at(rung).values())
            here = [trial for trial in paused if trial.measurements[-1].rung == rung]
            best = min(here, key=_error)  # the first suggested of equals
            if self._may_leave(_error(best), peers):
                return best
        return None

    def _may_leave(self, error: float, peers: Sequence[float]) -> bool:
        places = floor(len(peers) / self._reduction_factor)
        return isfinite(error) and sum(peer < error for peer in peers) < places


def _error(trial: TrialRecord) -> float:
    error = trial.measurements[-1].val_error
    return error if isfinite(error) else float("inf")
