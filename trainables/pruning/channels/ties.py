"""Channel labels: which channels stay or go together, as a union of sets.

A label is an integer that stands for one channel. A tensor of labels has the shape of the tensor
it describes and says of which channel each element is; a dimension along which it is constant has
stride 0, so that it takes no memory.
"""

from collections.abc import Iterable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

NO_CHANNEL = 0
"""The label of elements that belong to no channel: constants, sums over channels."""
FIXED = 1
"""The label of elements that are there whatever is pruned: images, what cannot be followed."""


class ChannelTies:
    """A disjoint-set forest over labels, in which sets can be pinned."""

    def __init__(self) -> None:
        self._parents = np.arange(2, dtype=np.int64)
        self._flat = True  # every label points to its root
        self._reasons: dict[int, str] = {}

    def fresh(self, count: int) -> Tensor:
        """Labels [count] of channels that are tied to none yet."""
        first = len(self._parents)
        self._parents = np.concatenate([self._parents, np.arange(first, first + count)])
        return torch.arange(first, first + count)

    def tie(self, a: Tensor, b: Tensor) -> None:
        """The channels of `a` and `b`, equal shapes, go together; `NO_CHANNEL` ties nothing."""
        a, b = torch.broadcast_tensors(a, b)
        pairs = torch.stack([self._small(a, b).flatten(), self._small(b, a).flatten()])
        pairs = pairs[:, (pairs != NO_CHANNEL).all(0) & (pairs[0] != pairs[1])]
        if not pairs.numel():
            return
        for one, other in torch.unique(pairs, dim=1).T.tolist():
            self._join(one, other)

    def pin(self, labels: Tensor, reason: str) -> None:
        """None of the channels may go, for `reason`, a sentence; the first reason stands."""
        for label in torch.unique(collapsed(labels)).tolist():
            if label > FIXED:
                self._reasons.setdefault(self._root(label), reason)

    def roots(self, labels: Tensor) -> Tensor:
        """One label for each set, in the shape of `labels`; pinned or not."""
        small = collapsed(labels)
        found = torch.from_numpy(self._table()).index_select(0, small.flatten())
        return found.view(small.shape).expand(labels.shape)

    def varies(self, labels: Tensor, dim: int) -> bool:
        """Whether elements along `dim` belong to channels that may go apart."""
        if labels.shape[dim] < 2 or labels.stride(dim) == 0:
            return False
        roots = self.roots(collapsed(labels))
        return not bool((roots == roots.narrow(dim, 0, 1)).all())

    def reason(self, root: int) -> str | None:
        """Why the set may not go; `None` where it may."""
        if root <= FIXED:
            return "its channels belong to the images or follow no rule."
        return self._reasons.get(root)

    def _join(self, one: int, other: int) -> None:
        one, other = self._root(one), self._root(other)
        if one == other:
            return
        if FIXED in (one, other):
            self.pin(torch.tensor([max(one, other)]), "it is joined with channels that stay.")
            return
        low, high = sorted((one, other))
        self._parents[high] = low
        self._flat = False
        if reason := self._reasons.pop(high, None):
            self._reasons.setdefault(low, reason)

    def _root(self, label: int) -> int:
        parents = self._parents
        while parents[label] != label:
            parents[label] = parents[parents[label]]
            label = int(parents[label])
        return label

    def _table(self) -> NDArray[np.int64]:
        while not self._flat:
            shorter = self._parents[self._parents]
            self._flat = bool((shorter == self._parents).all())
            self._parents = shorter
        return self._parents

    @staticmethod
    def _small(labels: Tensor, other: Tensor) -> Tensor:
        """`labels` without the dimensions along which neither changes."""
        for dim, size in enumerate(labels.shape):
            if size > 1 and labels.stride(dim) == 0 and other.stride(dim) == 0:
                labels, other = labels.narrow(dim, 0, 1), other.narrow(dim, 0, 1)
        return labels


def collapsed(labels: Tensor) -> Tensor:
    """`labels` with one entry along each dimension of stride 0."""
    for dim, size in enumerate(labels.shape):
        if size > 1 and labels.stride(dim) == 0:
            labels = labels.narrow(dim, 0, 1)
    return labels


def compact(labels: Tensor) -> Tensor:
    """Equal labels, with stride 0 along each dimension in which they are constant."""
    small = collapsed(labels)
    for dim, size in enumerate(small.shape):
        if size > 1 and bool((small == small.narrow(dim, 0, 1)).all()):
            small = small.narrow(dim, 0, 1)
    return small.expand(labels.shape)


def along(labels: Tensor, dim: int) -> Tensor:
    """The labels [size] along `dim` at the first place of every other dimension."""
    for other in range(labels.dim()):
        if other != dim % labels.dim():
            labels = labels.narrow(other, 0, 1)
    return labels.flatten()


def spread(labels: Tensor, dim: int, shape: Iterable[int]) -> Tensor:
    """Labels [size] along `dim` of a tensor of `shape`, the same everywhere else."""
    shape = tuple(shape)
    view = [1] * len(shape)
    view[dim] = len(labels)
    return labels.view(view).expand(shape)
