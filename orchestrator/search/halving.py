"""Asynchronous successive halving at equal compute."""

from collections.abc import Sequence
from enum import StrEnum
from math import floor, isfinite


class Decision(StrEnum):
    """What becomes of a trial that has reached a rung."""

    CONTINUE = "continue"
    """Train on to the next rung."""
    STOP = "stop"
    """Give its compute to others."""


class Halving:
    """Stops a trial at a rung when enough others did better for the same compute.

    The stopping form of asynchronous successive halving (arXiv 1810.05934): of the n trials
    measured at a rung so far, the best max(1, floor(n / reduction_factor)) go on, ties included.
    Nobody waits, so early arrivals are judged against few: while fewer than `min_peers` trials
    were measured at the rung, everyone goes on.

    Keeps no state of its own, so that a replay of recorded curves drives it as a sweep does.
    """

    def __init__(self, *, reduction_factor: float, min_peers: int) -> None:
        if not (isfinite(reduction_factor) and reduction_factor > 1):
            raise ValueError(
                f"reduction_factor={reduction_factor!r} must be above 1; "
                "4 lets the best quarter of a rung's trials go on."
            )
        if min_peers < 1:
            raise ValueError(
                f"min_peers={min_peers!r} must be at least 1; "
                "1 judges a trial as soon as it is measured."
            )
        self._reduction_factor = reduction_factor
        self._min_peers = min_peers

    def decide(self, rung: int, error: float, peers: Sequence[float]) -> Decision:
        """Whether the trial that has just measured `error` at `rung` trains on.

        `peers` are the validation errors of every trial measured at this rung so far, this one
        included. Errors that are not finite count as worst; a trial with such an error stops.
        """
        if rung < 0:
            raise ValueError(f"rung={rung!r} must be an index from 0.")
        if not isfinite(error):
            return Decision.STOP
        if len(peers) < self._min_peers:
            return Decision.CONTINUE
        places = max(1, floor(len(peers) / self._reduction_factor))
        better = sum(peer < error for peer in peers)
        return Decision.CONTINUE if better < places else Decision.STOP
