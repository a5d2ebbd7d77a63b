"""Which checkpoints are kept: those that the frontier and the running trials need."""

import re
from collections.abc import Collection

from pyarrow import fs

from orchestrator.store.ledger import Ledger
from trainables.checkpoints import STATE, checkpoint_folder

_RUNG = re.compile(r"rung-(\d+)")


class CheckpointKeeper:
    """Removes checkpoints as soon as nobody needs them.

    A dominated measurement stays dominated, so what left the frontier is never wanted back. What
    cannot be removed now is tried again later: it costs room, and no trial its life. Folders of
    trials that the ledger does not know are left alone.
    """

    def __init__(self, ledger: Ledger, trials_uri: str) -> None:
        self._ledger = ledger
        self._filesystem, self._folder = fs.FileSystem.from_uri(trials_uri)
        self._present: dict[str, set[int]] = {}
        """Rungs by trial id, of every trial that has a folder."""
        self._torn: set[tuple[str, int]] = set()
        """The rungs whose writer died half-way: nobody reads them."""
        self._list()
        self._untidy = set(self._present)
        """Trials that may have checkpoints which nobody needs any more."""
        self._frontier: set[tuple[str, int]] = set()
        """Trial and rung of the frontier's points when it was last tidied."""
        self._finished = len(ledger.finished_since(0))
        """How many trials had finished then."""
        self._held: frozenset[str] = frozenset()
        """Finished trials whose newest checkpoint others may go on from."""

    def measured(self, trial_id: str, rung: int) -> None:
        """A trial has written the checkpoint of a rung."""
        self._present.setdefault(trial_id, set()).add(rung)
        self._torn.discard((trial_id, rung))
        self._untidy.add(trial_id)

    def hold(self, trial_ids: Collection[str]) -> None:
        """Keeps the newest checkpoint of these trials, finished or not, and of no others besides.

        What is not held any more goes when it is tidied next.
        """
        held = frozenset(trial_ids)
        self._untidy.update(self._held - held)
        self._held = held

    def tidy(self) -> None:
        """Removes what neither the frontier nor an unfinished trial needs, and nobody holds.

        A finished trial that keeps no checkpoint loses its folder too.
        """
        points = self._ledger.measured_frontier.points
        frontier = {(point.trial_id, point.rung) for point in points}
        finished = self._ledger.finished_since(self._finished)
        self._untidy.update(trial_id for trial_id, _ in self._frontier - frontier)
        self._untidy.update(trial.trial_id for trial in finished)
        self._frontier = frontier
        self._finished += len(finished)
        self._untidy = {t for t in self._untidy if t in self._present and not self._is_tidied(t)}

    def _is_tidied(self, trial_id: str) -> bool:
        """Removes the checkpoints of a trial that nobody needs; tells whether all are gone."""
        folder, rungs = f"{self._folder}/{trial_id}", self._present[trial_id]
        finished = self._ledger.trial(trial_id).finished
        needed = {rung for rung in rungs if (trial_id, rung) in self._frontier}
        if not finished or trial_id in self._held:
            needed |= self._newest(trial_id)
        if finished and not needed:
            if not self._remove(folder):
                return False
            del self._present[trial_id]
            return True
        rungs -= {r for r in rungs - needed if self._remove(checkpoint_folder(folder, r))}
        return rungs <= needed

    def _newest(self, trial_id: str) -> set[int]:
        """Returns the rung to go on from, even if it was not yet reported when the driver died."""
        whole = {rung for rung in self._present[trial_id] if (trial_id, rung) not in self._torn}
        return {max(whole)} if whole else set()

    def _remove(self, folder: str) -> bool:
        """Removes a folder; tells whether it is gone now."""
        try:
            if self._filesystem.get_file_info(folder).type is not fs.FileType.NotFound:
                self._filesystem.delete_dir(folder)
        except OSError:
            return False
        return True

    def _list(self) -> None:
        selector = fs.FileSelector(self._folder, recursive=True, allow_not_found=True)
        paths = {info.path for info in self._filesystem.get_file_info(selector)}
        known = {trial.trial_id for trial in self._ledger.trials()}
        for path in paths:
            trial_id, _, inside = path.removeprefix(f"{self._folder}/").partition("/")
            if trial_id not in known:
                continue
            rungs = self._present.setdefault(trial_id, set())
            if match := _RUNG.fullmatch(inside):
                rung = int(match[1])
                rungs.add(rung)
                if f"{path}/{STATE}" not in paths:
                    self._torn.add((trial_id, rung))
