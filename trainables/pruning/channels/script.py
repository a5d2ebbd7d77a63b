"""The script of a forward pass: which steps it takes, and which feeds which.

Two passes of equal scripts treat their channels alike, so that one of them need be followed.
"""

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

from torch import Tensor
from torch.utils._pytree import tree_leaves


class Script:
    """The steps of one pass so far; equal to another if every step is."""

    def __init__(self) -> None:
        self._steps: list[Hashable] = []
        self._made_at: dict[int, int] = {}
        self._alive: list[Tensor] = []  # so that no two tensors share an id

    def add(self, what: str, args: Sequence[Any], kwargs: Mapping[str, Any], output: Any) -> None:
        """Adds the step `what`, an operation or a layer."""
        inputs = tuple(self._known(leaf) for leaf in tree_leaves((args, dict(kwargs))))
        outputs = [leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor)]
        for tensor in outputs:
            self._made_at[id(tensor)] = len(self._steps)
            self._alive.append(tensor)
        self._steps.append((what, inputs, tuple(tuple(tensor.shape) for tensor in outputs)))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Script) and self._steps == other._steps

    def _known(self, value: Any) -> Hashable:
        if isinstance(value, Tensor):
            return ("step", self._made_at.get(id(value)), tuple(value.shape))
        return repr(value)
