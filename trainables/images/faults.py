"""Refusals that list everything which is wrong at once, rather than the first fault of many."""

from collections.abc import Sequence

from trainables.errors import InputError, Key

MOST_LISTED = 100
"""Faults that a refusal spells out; the rest is counted."""


def refusal(faults: Sequence[str], *, rule: str, key: Key | None = None) -> InputError:
    """Returns the error that lists `faults`, such as "the image at x is null", then the `rule`.

    The `rule` says how to mend them, and may end with the `key` that it is about.
    """
    listed = list(faults[:MOST_LISTED])
    if more := len(faults) - len(listed):
        listed.append(f"and {more} more")
    text = "; ".join(listed)
    return InputError(f"{text[:1].upper()}{text[1:]}, but {rule}", *([key] if key else []), ".")
