"""Chance: when a trial has learnt nothing where others learn."""

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import sqrt

from orchestrator.search.strategy import GO_ON, Decision, Standing, Verdict
from orchestrator.store.ledger import TrialState

SIGNIFICANCE = 2.326
"""Standard errors below chance that luck reaches once in a hundred tries (one-sided, normal)."""


@dataclass(frozen=True, kw_only=True)
class Chance:
    """A judge that stops trials which do no better than guessing the most common class.

    Where most others have learnt, such a trial has diverged without its loss becoming infinite:
    mostly a learning rate that broke the pretrained weights. A trial alone cannot know this,
    because at little compute, or on a hard task, nobody is better than chance.
    """

    images: int
    """Images in the validation split."""
    most_common: int
    """Images of its most common class."""
    min_peers: int
    """Trials measured at a rung before anybody is judged there."""

    @classmethod
    def of(cls, class_counts: Mapping[str, int], *, min_peers: int) -> "Chance":
        """Reads it from the images of every class in the validation split."""
        counts = class_counts.values()
        return cls(images=sum(counts), most_common=max(counts), min_peers=min_peers)

    @property
    def error(self) -> float:
        """Error rate of always predicting the most common class, 0-1."""
        return 1 - self.most_common / self.images

    @property
    def learnt_below(self) -> float:
        """The error under which a trial is significantly better than guessing.

        p - z·√(p·(1-p) / n): the error of n guesses, each wrong with probability p, is as low by
        luck once in a hundred tries.
        """
        return self.error - SIGNIFICANCE * sqrt(self.error * (1 - self.error) / self.images)

    def judge(self, standing: Standing) -> Verdict:
        """Stops a trial as diverged, also at its end, where it is at chance and others are not."""
        error, peers = standing.measurement.val_error, standing.peers
        if not self.has_diverged(error, peers):
            return GO_ON
        return Verdict(
            decision=Decision.STOP,
            state=TrialState.DIVERGED,
            reason=f"an error of {error:.3f} at rung {standing.measurement.rung} is no better than "
            f"guessing ({self.error:.3f}), where {self.learners(peers)} of {len(peers)} trials "
            "have learnt",
        )

    def has_diverged(self, error: float, peers: Sequence[float]) -> bool:
        """Whether `error` is at chance though most of the others at its rung have learnt.

        `peers` are the validation errors of all trials measured there so far, this one included,
        ascending.
        """
        if error < self.learnt_below or len(peers) < self.min_peers:
            return False
        return 2 * self.learners(peers) > len(peers)

    def learners(self, peers: Sequence[float]) -> int:
        """How many of the trials are significantly better than guessing."""
        return bisect_left(peers, self.learnt_below)
