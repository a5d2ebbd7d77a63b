"""Work on many images, a part of them at a time, in the largest parts that fit into memory."""

from collections.abc import Callable, Iterator
from typing import TypeVar

import torch

Result = TypeVar("Result")


def in_parts_that_fit(
    work: Callable[[slice], Result], images: int, *, part: int, smallest: int = 1
) -> Iterator[Result]:
    """Yields what `work` gives for the rows of each part, in order: `part` of `images` at a time.

    A part that runs out of memory is halved and worked on again, and later ones are no larger;
    `torch.OutOfMemoryError` leaves here when the halves would have fewer images than `smallest`.
    The last part may have fewer. `work` must leave no trace of an attempt that failed.
    """
    first = 0
    while first < images:
        last = min(first + part, images)
        try:
            result = work(slice(first, last))
        except torch.OutOfMemoryError:
            part = (last - first) // 2
            if part < smallest:
                raise
            continue
        yield result
        first = last
