"""Remembers results by a key, the most recently used ones."""

from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

Result = TypeVar("Result")


class Remembered(Generic[Result]):
    """Results by key, of which the least recently used are evicted.

    `functools.lru_cache` would keep the arguments of each call alive, models among them; this keeps
    keys and results alone.
    """

    def __init__(self, *, size: int) -> None:
        self._size = size
        self._results: OrderedDict[Hashable, Result] = OrderedDict()

    def get(self, key: Hashable, find: Callable[[], Result]) -> Result:
        """The result of `key`, which `find` returns where it is not remembered.

        What `find` raises is passed on and nothing is remembered then.
        """
        if key not in self._results:
            self._results[key] = find()
            if len(self._results) > self._size:
                self._results.popitem(last=False)
        self._results.move_to_end(key)
        return self._results[key]
