"""Confirmation: cheap recipes of the frontier are run once more, with another seed."""

from math import floor

from analysis.frontier import Frontier
from orchestrator.search.config import Budget
from orchestrator.search.field import Field, Room
from orchestrator.search.strategy import GO_ON, Decision, Move, Verdict
from orchestrator.store.ledger import TrialRecord, TrialState
from trainables.measurement import Measurement

_WORTH_IT = (TrialState.COMPLETE, TrialState.HALVED)
"""States of trials that are run again: those that came to grief would only do so once more."""


class Confirmation:
    """Keeps a share of the budget back, and spends it on the frontier when the rest is spent.

    So nothing is confirmed that is still being beaten, and an extended sweep confirms the points
    that are new. The cheapest come first: there the lowest error is that of most trials. What is
    not needed goes back to the scheduler. All is told by the ledger, so that a restarted driver
    decides alike.
    """

    def __init__(self, share: float, budget: Budget) -> None:
        """`share` of the budget's FLOPs and trials at most, 0-0.5; 0 confirms nothing."""
        if not 0 <= share <= 0.5:
            raise ValueError(f"share={share!r} must lie in [0, 0.5]; 0 confirms nothing.")
        self._share = share
        self._budget = budget

    def left(self, field: Field) -> Room:
        """The part of the share that is not spent, or about to be."""
        budget, flops, trials = self._budget, None, None
        if budget.sweep_flops is not None:
            spent = sum(_cost(trial, field) for trial in field.confirming)
            flops = max(0.0, self._share * budget.sweep_flops - spent)
        if budget.trials is not None:
            trials = max(0, floor(self._share * budget.trials) - len(field.confirming))
        return Room(flops=flops, trials=trials)

    def spared(self, room: Room, field: Field, *, time_left: float) -> Room:
        """The room that others have; none in the last of the time, of which a share is `time_left`.

        What is confirmed is cheap and ends in time.
        """
        left = self.left(field)
        if self._share and time_left <= self._share:
            return Room(flops=0.0, trials=0, share_left=room.share_left)
        return Room(
            flops=None if room.flops is None else room.flops - (left.flops or 0.0),
            trials=None if room.trials is None else max(0, room.trials - (left.trials or 0)),
            share_left=room.share_left,
        )

    def next_move(self, frontier: Frontier, field: Field, room: Room) -> Move | None:
        """Says which recipe of the frontier is run again; None where none is that cheap."""
        left = self.left(field)
        confirmed = {trial.confirms for trial in field.confirming}
        points = [point for point in frontier.points if point.confirming_error is None]
        trials = [field.trial(point.trial_id) for point in points]
        worth_it = [
            trial
            for trial in trials
            if trial.state in _WORTH_IT and not trial.confirms and trial.trial_id not in confirmed
        ]
        cheapest = min(worth_it, key=lambda t: (reached_flops(t), t.number), default=None)
        if not self._share or cheapest is None:
            return None
        cost = reached_flops(cheapest)
        fits = left.holds(cost) and room.holds(cost)
        return Move(trial=cheapest, again=True) if fits else None


def judge(measurement: Measurement, confirmed: TrialRecord, *, over: bool) -> Verdict:
    """Stops a trial where the one that it confirms ended; a race has no part in it."""
    if over or measurement.rung < confirmed.measurements[-1].rung:
        return GO_ON
    return Verdict(
        decision=Decision.STOP,
        state=TrialState.HALVED,
        reason=f"trial {confirmed.number}, which it confirms, went no further",
    )


def reached_flops(trial: TrialRecord) -> float:
    """The training FLOPs with which the trial's recipe comes as far as it has, run alone."""
    return trial.measurements[-1].train_flops if trial.measurements else 0.0


def _cost(trial: TrialRecord, field: Field) -> float:
    """The training FLOPs that a confirming trial has spent, or may have spent in the end."""
    if trial.finished or trial.confirms is None:
        return trial.executed_flops
    return max(trial.executed_flops, reached_flops(field.trial(trial.confirms)))
