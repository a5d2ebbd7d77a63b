"""A forecast that a sweep can do without."""

import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np

from orchestrator.search.field import Field
from orchestrator.search.forecast import Floats
from orchestrator.search.forecaster import GROWTH, Forecaster
from orchestrator.store.ledger import TrialRecord
from trainables.errors import first_line

FIT_SECONDS = 60.0
"""Longest time that a forecast may take to be made; it takes one second on an idle machine."""
USE_SECONDS = 10.0
"""Longest time that asking it may take; it takes a tenth of a second."""

_log = logging.getLogger(__name__)


class DispensableForecaster(Forecaster):
    """A forecaster that is given up for good when it fails or takes too long, which is said once.

    It is never ready from then on: the race goes by errors alone, and recipes are drawn by another
    sampler. A driver that is started again tries anew.
    """

    given_up = False
    """Whether it has failed."""
    _awaited: tuple[object, float] | None = None
    """The forecast that a thread is making, and since when it is waited for."""

    def __init__(
        self,
        *,
        seed: int,
        growth: float = GROWTH,
        background: bool = False,
        repeatable: bool = False,
    ) -> None:
        """Where it is `repeatable`, what it tells depends on the field alone, as generations need.

        It may take any time then, and a failure counts until the field has grown, or, where there
        is a forecast that failed when it was asked, once: a driver started since tries anew too.
        """
        super().__init__(seed=seed, growth=growth, background=background)
        self._repeatable = repeatable
        self._said = False

    @property
    def ready(self) -> bool:
        """Whether enough was measured for a forecast, and none has failed."""
        return not self.given_up and super().ready

    def learn(self, field: Field) -> None:
        """Has a new forecast made where the field has grown enough, or takes over the one made."""
        if self._repeatable and field.evidence != self._made_of:
            self.given_up = False
        if self.given_up:
            return
        with self.watched(FIT_SECONDS):
            super().learn(field)
        self._watch_thread()

    def further_gains(self, trials: Sequence[TrialRecord], *, rung: int) -> Floats:
        """Expected hypervolume that trials add, as a forecaster tells; 0 for all when it fails."""
        with self.watched(USE_SECONDS):
            return super().further_gains(trials, rung=rung)
        return np.zeros(len(trials))

    @contextmanager
    def watched(self, seconds: float) -> Iterator[None]:
        """Gives the forecast up if what is done with it raises, or takes longer."""
        started = time.monotonic()
        try:
            yield
        except Exception as error:  # whatever it is, the sweep goes on
            self._give_up(f"{type(error).__name__}: {first_line(error)}")
            return
        took = time.monotonic() - started
        if took > seconds and not self._repeatable:
            self._give_up(_too_long(took, seconds))

    def _watch_thread(self) -> None:
        """Gives the forecast up if a thread is making one for too long."""
        if self._coming is None:
            return
        if self._awaited is None or self._awaited[0] is not self._coming:
            self._awaited = (self._coming, time.monotonic())
        if (took := time.monotonic() - self._awaited[1]) > FIT_SECONDS:
            self._give_up(_too_long(took, FIT_SECONDS))

    def _give_up(self, reason: str) -> None:
        if not self._said:
            _log.warning(
                "The forecast of learning curves is given up (%s): from here on the race goes by "
                "errors alone, and the sampler is tpe.",
                reason,
            )
        self.given_up = not self._repeatable or self.forecast is None
        self._said = True


def _too_long(took: float, seconds: float) -> str:
    return f"it took {took:.2g} seconds and may take {seconds:.2g}"
