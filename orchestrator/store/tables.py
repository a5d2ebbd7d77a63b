"""Keeps the Parquet tables equal to the ledger, in a thread that never holds up the sweep."""

import json
import logging
import threading
import time

from pyarrow import fs

from analysis.table import (
    PARAMETERS,
    MeasurementRow,
    TrialRow,
    row_of,
    write_measurements,
    write_trials,
)
from orchestrator.store.ledger import Ledger
from search_spaces.names import renamed

_log = logging.getLogger(__name__)

MIN_PERIOD_SECONDS = 3.0
"""Least time between two writes."""
MAX_SHARE = 0.05
"""Largest share of one thread's time that writing may take, however long the tables get."""


class TableWriter:
    """Writes the measurement table and the trial table whole whenever the ledger has changed.

    The tables are views of the journal, so a crash can make them late but never wrong: the next
    start writes them again. A store that is away delays them in the same way.
    """

    def __init__(self, ledger: Ledger, storage: fs.FileSystem) -> None:
        self._ledger = ledger
        self._storage = storage
        self._written = 0
        self._writing = threading.Lock()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._work, name="table-writer", daemon=True)

    def start(self) -> None:
        """Starts the thread that writes."""
        self._thread.start()

    def close(self) -> None:
        """Ends the thread and writes the last state. Raises `OSError` if that cannot be written."""
        self._closing.set()
        if self._thread.is_alive():
            self._thread.join()
        self.write()

    def write(self) -> None:
        """Writes the tables now if they are behind the ledger. Raises `OSError` if it cannot."""
        with self._writing:  # two writers would share a temporary file
            revision = self._ledger.revision
            if revision == self._written:
                return
            metadata = {"prunetune.sweep_id": self._ledger.sweep_id or ""}
            measurements = map(row_of, self._measurements())
            write_measurements(measurements, self._storage, metadata=metadata)
            metadata[PARAMETERS] = json.dumps(self._renamed_parameters())
            write_trials(map(row_of, self._trials()), self._storage, metadata=metadata)
            self._written = revision

    def _work(self) -> None:
        pause = MIN_PERIOD_SECONDS
        while not self._closing.wait(pause):
            started = time.perf_counter()
            try:
                self.write()
            except OSError as error:  # a disk or a store that is away for a while
                _log.warning("The tables cannot be written now (%s); it is tried again.", error)
                pause = 10 * MIN_PERIOD_SECONDS
                continue
            pause = max(MIN_PERIOD_SECONDS, (time.perf_counter() - started) / MAX_SHARE)

    def _measurements(self) -> list[MeasurementRow]:
        return [
            MeasurementRow(
                sweep_id=self._ledger.sweep_id or "",
                trial_id=trial.trial_id,
                number=trial.number,
                attempt=reading.attempt,
                measurement=measurement,
                expected_error=expected[0] if expected else None,
                confirming_error=expected[1] if expected else None,
                sweep_flops=reading.sweep_flops,
                measured_at=reading.measured_at,
                trial_state=trial.state.value,
                recipe_id=trial.recipe.recipe_id,
                seed=trial.seed,
                method=trial.recipe.method,
                recipe=trial.recipe.flat(),
            )
            for trial, measurement, reading in self._ledger.readings()
            for expected in [self._ledger.expected(trial, measurement)]
        ]

    def _renamed_parameters(self) -> dict[str, tuple[str, ...]]:
        """Returns the recipe's fields of the sampled parameters that are called otherwise."""
        return renamed(sorted({name for trial in self._ledger.trials() for name in trial.params}))

    def _trials(self) -> list[TrialRow]:
        return [
            TrialRow(
                trial_id=trial.trial_id,
                number=trial.number,
                state=trial.state.value,
                reason=trial.reason,
                attempt=trial.attempt,
                executed_flops=trial.executed_flops,
                seed=trial.seed,
                confirms=trial.confirms,
                suggested_at=trial.suggested_at,
                finished_at=trial.finished_at,
                recipe_id=trial.recipe.recipe_id,
                recipe=trial.recipe.flat(),
            )
            for trial in self._ledger.trials()
        ]
