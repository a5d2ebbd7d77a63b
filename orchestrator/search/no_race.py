"""No race: every trial spends the compute that it aims at."""

from collections.abc import Sequence

from orchestrator.search.strategy import GO_ON, ErrorsAt, Standing, Verdict
from orchestrator.store.ledger import TrialRecord


class NoRace:
    """Lets every trial go on."""

    def judge(self, standing: Standing) -> Verdict:
        """Has nothing against any trial."""
        return GO_ON

    def resume(self, paused: Sequence[TrialRecord], errors_at: ErrorsAt) -> TrialRecord | None:
        """The first of the trials that another scheduler left paused; this one pauses nobody."""
        return next(iter(paused), None)
