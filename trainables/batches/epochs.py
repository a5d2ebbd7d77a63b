"""The order in which training images are seen."""

import torch
from torch import Tensor

from trainables.seeds import generator


class Epochs:
    """Fresh permutations of the training images, laid end to end and cut into batches.

    A step's images depend on the seed, the step and the batch size alone, so that a resumed trial
    sees what it would have seen. Batches may reach over the end of an epoch, and be larger than
    one.
    """

    def __init__(self, *, images: int, seed: int, length: int | None = None) -> None:
        """`length` is how many images of each permutation are seen; all unless given."""
        self._images = images
        self._length = images if length is None else length
        self._seed = seed
        self._newest: tuple[int, Tensor] | None = None

    def batch(self, step: int, *, size: int) -> Tensor:
        """Indices [size], int64, of the images of `step`, which counts from 0."""
        pieces: list[Tensor] = []
        first, last = step * size, (step + 1) * size
        while first < last:
            epoch, offset = divmod(first, self._length)
            piece = self._permutation(epoch)[offset : offset + last - first]
            pieces.append(piece)
            first += len(piece)
        return torch.cat(pieces)

    def _permutation(self, epoch: int) -> Tensor:
        if self._newest is None or self._newest[0] != epoch:
            order = torch.randperm(self._images, generator=generator(self._seed, "order", epoch))
            self._newest = epoch, order[: self._length]
        return self._newest[1]
