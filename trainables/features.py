"""The feature store: what frozen trunks make of images, kept on disk and shared by a node's trials.

A file holds the features of the first images in a fixed order, so that whoever needs more extends
it. A small index beside it says how many of its rows count: a writer that is killed leaves rows
that no reader takes for features, and the next writer overwrites them.
"""

import errno
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from pathlib import Path

import numpy as np
import torch
from filelock import FileLock
from torch import Tensor

from trainables.errors import InputError
from trainables.seeds import generator

SMALLEST_CHUNK = 8
_LARGEST_CHUNK = 64
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_BYTES = 4  # of a float32

Extract = Callable[[int, int], Tensor]
"""Features [last - first, ...] of the images at the places first, first + 1, ..., last - 1."""


@dataclass(frozen=True, kw_only=True)
class Features:
    """The features of the first images, and what having them took."""

    rows: Tensor
    """float32 [images, ...]; a private view of the file, so that writing to it changes no other."""
    extracted: int
    """Images that had to be extracted for it, 0 when others had done it all."""


def whole_chunks(images: float, *, total: int) -> int:
    """The most images, at most `images` of `total`, that are extracted in whole chunks.

    Chunks are the same for everybody, so that features are equal to the last bit whoever extracts
    them, and however many: they end at 8, 16, 32, 64, 128, 192, ... and at `total`.
    """
    if images >= total:
        return total
    if images < SMALLEST_CHUNK:
        return 0
    if images >= _LARGEST_CHUNK:
        return int(images) // _LARGEST_CHUNK * _LARGEST_CHUNK
    return 1 << (int(images).bit_length() - 1)


def balanced_order(labels: Tensor) -> Tensor:
    """A fixed random order [N], int64, of the images of which each beginning is balanced.

    The k-th image of a class of n comes at the share (k + ½) / n of the way, so that every class
    has its share of any beginning, up to one image.
    """
    shuffled = torch.randperm(len(labels), generator=generator("features"))
    place = torch.empty(len(labels), dtype=torch.float64)
    for label in labels.unique():
        members = shuffled[labels[shuffled] == label]
        place[members] = (torch.arange(len(members), dtype=torch.float64) + 0.5) / len(members)
    return shuffled[torch.argsort(place[shuffled], stable=True)]


def open_features(
    path: Path, *, images: int, total: int, shape: tuple[int, ...], extract: Extract
) -> Features:
    """The features of the first `images` of `total` images, from `path` as far as it goes.

    What is missing is extracted and appended, while others who want more wait; `images` must be
    what `whole_chunks` gives. Raises `InputError` when the disk is full or cannot be written.
    """
    ready = _committed(path)
    if ready < images:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(path.with_suffix(".lock")):
                ready = _committed(path)
                if ready < images:
                    _append(path, ready, images, total=total, shape=shape, extract=extract)
        except OSError as error:
            if error.errno in _NO_ROOM:
                raise InputError(_no_room(path.parent, "more space than is left")) from error
            raise InputError(
                f"The feature store {path.parent} cannot be written ({error.strerror}), but the "
                "features of frozen models are kept there; choose a folder with the rights to "
                "write."
            ) from error
    # Copy on write: PyTorch warns of read-only arrays, and no reader may change the file.
    rows = np.memmap(path, dtype=np.float32, mode="c", shape=(images, *shape))
    return Features(rows=torch.from_numpy(rows), extracted=max(0, images - ready))


def _committed(path: Path) -> int:
    """How many rows of the file count."""
    try:
        rows: int = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))["rows"]
    except FileNotFoundError:
        return 0
    return rows


def _append(
    path: Path, ready: int, images: int, *, total: int, shape: tuple[int, ...], extract: Extract
) -> None:
    """Extracts rows `ready` to `images` into the file; the caller holds its lock.

    Appended rather than written to a memory map, where a full disk kills the process.
    """
    row_bytes = _BYTES * prod(shape)
    needed_bytes = (images - ready) * row_bytes
    if needed_bytes > shutil.disk_usage(path.parent).free:
        raise InputError(_no_room(path.parent, f"{needed_bytes / 1e9:.1f} GB"))
    path.touch()
    with path.open("r+b") as file:
        file.truncate(ready * row_bytes)  # a killed writer's rows
        file.seek(0, os.SEEK_END)
        while ready < images:
            last = _end_of_chunk(ready, total=total)
            rows = extract(ready, last).to("cpu", torch.float32)
            file.write(rows.contiguous().numpy().tobytes())
            ready = last
        file.flush()
        os.fsync(file.fileno())  # a rename may outlive a crash that the content does not
    fresh = path.with_suffix(".partial")
    fresh.write_text(json.dumps({"rows": ready, "shape": shape}), encoding="utf-8")
    fresh.replace(path.with_suffix(".json"))


def _end_of_chunk(first: int, *, total: int) -> int:
    size = min(max(first, SMALLEST_CHUNK), _LARGEST_CHUNK)
    return min(first + size, total)


def _no_room(folder: Path, needed: str) -> str:
    return (
        f"The features of a frozen model need {needed} in {folder}; free some space there, choose "
        "another folder for the cache, or lower `max_train_images`."
    )
