"""Standings made of numbers: what the tests of judges feed them."""

from collections.abc import Sequence
from dataclasses import replace
from math import inf, isnan

from orchestrator.search.strategy import Standing
from tests.orchestrator.fake_trials import measurement, record


def standing(
    error: float, peers: Sequence[float], *, rung: int = 0, over: bool = False
) -> Standing:
    """A trial that has measured `error` at `rung`, where `peers` were measured, it included."""
    measured = replace(measurement(0, error), rung=rung)
    trial = record(measurements=(measured,))
    ranked = sorted(inf if isnan(peer) else peer for peer in peers)
    return Standing(trial=trial, measurement=measured, peers=ranked, over=over)
