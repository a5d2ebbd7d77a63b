"""Asynchronous successive halving at equal compute, in its stopping form."""

from bisect import bisect_left
from collections.abc import Collection, Mapping, Sequence
from math import floor, isfinite

from orchestrator.search.field import Field, Room
from orchestrator.search.strategy import GO_ON, Decision, Move, Standing, Verdict
from orchestrator.store.ledger import TrialState


class Halving:
    """Stops a trial at a rung when enough others did better for the same compute.

    The stopping form of asynchronous successive halving (arXiv 1810.05934): of the n trials
    measured at a rung so far, the best max(1, floor(n / reduction_factor)) go on, ties included.
    Nobody waits, so early arrivals are judged against few: while fewer than `min_peers` trials
    were measured at the rung, everyone goes on.
    """

    def __init__(self, *, reduction_factor: float, min_peers: int) -> None:
        check_reduction_factor(reduction_factor)
        if min_peers < 1:
            raise ValueError(
                f"min_peers={min_peers!r} must be at least 1; "
                "1 judges a trial as soon as it is measured."
            )
        self._reduction_factor = reduction_factor
        self._min_peers = min_peers

    def judge(self, standing: Standing) -> Verdict:
        """Stops the trial unless it is among the best; one with an error not finite stops."""
        error, peers = standing.measurement.val_error, standing.peers
        if standing.over or self._goes_on(error, peers):
            return GO_ON
        return Verdict(
            decision=Decision.STOP,
            state=TrialState.HALVED,
            reason=f"others were better at rung {standing.measurement.rung}",
        )

    def next_move(self, field: Field, room: Room) -> Move | None:
        """The first of the trials that another scheduler left paused, else a new recipe."""
        return Move(trial=next(iter(field.affordable(room)), None))

    def candidates(self, field: Field) -> Collection[str]:
        """None: nobody is raised."""
        return ()

    def hopeless(self, field: Field) -> Mapping[str, str]:
        """None: whoever another scheduler left paused goes on."""
        return {}

    def _goes_on(self, error: float, peers: Sequence[float]) -> bool:
        if not isfinite(error):
            return False
        if len(peers) < self._min_peers:
            return True
        places = max(1, floor(len(peers) / self._reduction_factor))
        return bisect_left(peers, error) < places


def check_reduction_factor(reduction_factor: float) -> None:
    """Raises `ValueError` for a factor that would let everyone, or nobody, go on."""
    if not (isfinite(reduction_factor) and reduction_factor > 1):
        raise ValueError(
            f"reduction_factor={reduction_factor!r} must be above 1; "
            "4 lets the best quarter of a rung's trials go on."
        )
