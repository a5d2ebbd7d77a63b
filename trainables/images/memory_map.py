"""Arrays in files, mapped into memory, which all processes of a node hold once together."""

import mmap
import sys
from math import prod
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from numpy.typing import DTypeLike
from torch import Tensor

# Python 3.11's `mmap` lacks the name; other systems reserve nothing anyway.
_MAP_NORESERVE = 0x4000 if sys.platform == "linux" else 0


def map_npy(path: Path) -> Tensor:
    """Maps the array of an `.npy` file as `map_private` does."""
    with path.open("rb") as file:
        np.lib.format.read_magic(file)
        shape, _, dtype = np.lib.format.read_array_header_1_0(file)
        return map_private(file, dtype=dtype, shape=shape, offset=file.tell())


def map_private(file: BinaryIO, *, dtype: DTypeLike, shape: tuple[int, ...], offset: int) -> Tensor:
    """Maps the array of `shape` that begins `offset` bytes into `file`; it outlives the open file.

    Only the pages that are read take memory, until one is written to.

    Copy on write: PyTorch warns of read-only arrays, and no reader may change the file. NumPy's own
    map of that kind reserves memory for every page, and fails for files larger than the machine's.
    Raises `ValueError` when the file is too short.
    """
    pages = mmap.mmap(
        file.fileno(),
        offset + np.dtype(dtype).itemsize * prod(shape),
        flags=mmap.MAP_PRIVATE | _MAP_NORESERVE,
        prot=mmap.PROT_READ | mmap.PROT_WRITE,
    )
    array = np.frombuffer(pages, dtype=dtype, count=prod(shape), offset=offset)
    return torch.from_numpy(array.reshape(shape))
