"""The beginnings of a sweep: what its journal says before a ledger is made of it."""

from collections.abc import Mapping, Sequence
from typing import Any

from orchestrator.store.journal import Journal


def recorded_start(journal: Journal) -> Sequence[Mapping[str, Any]] | None:
    """Returns what `Ledger.start` is, or nothing where trials of an older sweep came without.

    None where the sweep has not begun.
    """
    for event in journal.events():
        if event["event"] in ("started_with", "suggested"):
            recipes: Sequence[Mapping[str, Any]] = event.get("recipes", ())
            return recipes
    return None


def recorded_identity(journal: Journal) -> Mapping[str, Any] | None:
    """Returns the content that the sweep was begun with, in JSON types.

    None where it has not begun, or where only older prunetunes ran it, which kept none.
    """
    opened = (event for event in journal.events() if event["event"] == "opened")
    return next((event["identity"] for event in opened if "identity" in event), None)


def recorded_search(journal: Journal) -> Mapping[str, str] | None:
    """Returns the names of sampler and scheduler that the sweep's newest driver had.

    Empty where an older prunetune kept none; None where the sweep has not begun.
    """
    search: Mapping[str, str] = {}
    begun = False
    for event in journal.events():
        search = event.get("search", search) if event["event"] == "opened" else search
        begun = begun or event["event"] == "suggested"
    return search if begun else None
