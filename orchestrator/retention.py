"""Which checkpoints are kept: those that the frontier and the running trials need."""

import re

from pyarrow import fs

from orchestrator.ledger import Ledger
from trainables.checkpoints import checkpoint_folder

_CHECKPOINT = re.compile(r"(?P<trial>[^/]+)/rung-(?P<rung>\d+)$")


class CheckpointKeeper:
    """Removes checkpoints as soon as nobody needs them.

    A dominated measurement stays dominated, so what left the frontier is never wanted back.
    """

    def __init__(self, ledger: Ledger, trials_uri: str) -> None:
        self._ledger = ledger
        self._filesystem, self._folder = fs.FileSystem.from_uri(trials_uri)
        self._present = self._listed()

    def measured(self, trial_id: str, rung: int) -> None:
        """A trial has written the checkpoint of a rung."""
        self._present.add((trial_id, rung))

    def tidy(self) -> None:
        """Removes what neither the frontier nor an unfinished trial needs.

        An unfinished trial needs its newest checkpoint, be it one that was written and not yet
        reported when the driver died.
        """
        needed = {(point.trial_id, point.rung) for point in self._ledger.frontier.points}
        newest: dict[str, int] = {}
        for trial_id, rung in self._present:
            newest[trial_id] = max(rung, newest.get(trial_id, rung))
        needed |= {
            (trial_id, rung)
            for trial_id, rung in newest.items()
            if not self._ledger.trial(trial_id).finished
        }
        for trial_id, rung in self._present - needed:
            path = checkpoint_folder(f"{self._folder}/{trial_id}", rung)
            if self._filesystem.get_file_info(path).type is not fs.FileType.NotFound:
                self._filesystem.delete_dir(path)
        self._present &= needed

    def _listed(self) -> set[tuple[str, int]]:
        selector = fs.FileSelector(self._folder, recursive=True, allow_not_found=True)
        known = {trial.trial_id for trial in self._ledger.trials()}
        listed = self._filesystem.get_file_info(selector)
        matches = (_CHECKPOINT.search(info.path) for info in listed)
        return {
            (match["trial"], int(match["rung"]))
            for match in matches
            if match and match["trial"] in known
        }
