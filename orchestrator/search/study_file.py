"""The journal file of an Optuna study: one writer, any readers, and damage is found out."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

_ENDED = "datetime_complete"
"""The name that Optuna's journal gives to the time at which a trial ended."""


class StudyFile(JournalFileBackend):
    """The study's journal file, whose writer may hold lines back to write them in one piece."""

    def __init__(self, path: Path) -> None:
        super().__init__(str(path))
        self._held: list[dict[str, Any]] | None = None

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Writes the lines, or holds them back."""
        if self._held is None:
            super().append_logs(logs)
        else:
            self._held += logs

    @contextmanager
    def together(self, *, finished_at: float | None = None) -> Iterator[None]:
        """Writes in one piece, at its end, what the study is told inside; until then it is unread.

        A trial that ends inside has ended at `finished_at` if that is given, in Unix seconds, and
        else now.
        """
        self._held = []
        try:
            yield
        finally:
            held, self._held = self._held, None
        if finished_at is not None:
            moment = datetime.fromtimestamp(finished_at, UTC).isoformat(timespec="microseconds")
            held = [log | ({_ENDED: moment} if _ENDED in log else {}) for log in held]
        if held:
            super().append_logs(held)


def journal_at(path: Path) -> tuple[StudyFile, JournalStorage]:
    """Opens the journal at `path`, new where there is none, and replays it."""
    file = StudyFile(path)
    return file, JournalStorage(file)


def intact_journal(path: Path) -> tuple[StudyFile, JournalStorage] | None:
    """Opens the journal at `path`; returns `None` where it is damaged.

    A driver killed while it writes leaves half a last line. Optuna reads past it, glues the next
    line to it, and then reads nothing any more: so every line must be whole and JSON.
    """
    try:
        if path.exists():
            with path.open("rb") as lines:
                for line in lines:
                    if not line.endswith(b"\n"):
                        return None
                    json.loads(line)
        return journal_at(path)
    except OSError:
        raise
    except Exception:  # whatever Optuna's replay makes of lines it never wrote
        return None
