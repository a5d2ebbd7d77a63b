"""The errors that speak to the user, and the one outcome of a trial that is no fault."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Self


class UserError(ValueError):
    """Something that the user can mend: one sentence with the value, the rule and the mend.

    The base of every such error in all rooms; the command line ends with its sentence and status 2.
    """


class Key(str):
    """The name of a config key in a message, without the section in which the user writes it."""


class InputError(UserError):
    """Bad input.

    The message may come in parts. A part that is a `Key` is completed by the caller that knows
    the key's section: `InputError(Key("source"), "='x' does not exist.")` reads "source='x' does
    not exist." and, when it leaves `keys_of("task")`, "task.source='x' does not exist."
    """

    def __init__(self, *parts: str) -> None:
        super().__init__(*parts)

    def __str__(self) -> str:
        return "".join(self.args)

    def under(self, section: str) -> Self:
        """Returns the same error with its keys named as keys of `section`."""
        return type(self)(
            *(Key(f"{section}.{part}") if isinstance(part, Key) else part for part in self.args)
        )


@contextmanager
def keys_of(section: str) -> Iterator[None]:
    """Names the keys in errors of bad input as the user writes them, as keys of `section`."""
    try:
        yield
    except InputError as error:
        raise error.under(section) from error


class InfeasibleError(Exception):
    """A recipe that cannot be realised on this backbone; the message names the layer or the limit.

    It is an outcome of a trial, not a fault: it is recorded, told to the search, and never retried.
    """

    def __init__(
        self, reason: str, *, spent_flops: float = 0.0, needs_flops: float | None = None
    ) -> None:
        super().__init__(reason)
        self.spent_flops = spent_flops
        """Training FLOPs executed before it was found out."""
        self.needs_flops = needs_flops
        """The least training FLOPs with which the recipe could take a step, as far as was found
        out; None where nothing is known of them, or no compute helps."""


def first_line(error: BaseException) -> str:
    """Returns the first line of the error's message without a full stop, or else its kind."""
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".") if lines else type(error).__name__
