"""The feature store: what frozen trunks make of images, kept on disk and shared by a node's trials.

A file holds the features of the first images in a fixed order, so that a trial which needs more
extends it. It begins with the number of its rows that count, and their digest: a writer that is
killed leaves rows that no reader takes for features, and the next writer overwrites them. Rows
that are not as they were written are found when the file is opened, and extracted anew.

Every pruning of a backbone is a trunk of its own, so that a sweep leaves hundreds of files. They
may take as much of the disk as they leave free; before a file grows beyond that, least recently
used files are evicted. A trial that needs one of them again extracts anew, and is billed for it.
"""

import errno
import logging
import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from filelock import FileLock, Timeout
from torch import Tensor

from trainables.errors import InputError
from trainables.images.memory_map import map_private
from trainables.images.seal import digest_of
from trainables.seeds import generator

_log = logging.getLogger(__name__)

SMALLEST_CHUNK = 8
_LARGEST_CHUNK = 64
_DISK_SHARE = 0.5
"""Share that the store may hold of what it holds and what else is free on its disk."""
_HEADER_BYTES = 64  # the rows that count, as int64, and their digest; the rest aligns the rows
_DIGEST_BYTES = 32
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_BYTES = 4  # of a float32

Extract = Callable[[int, int], Tensor]
"""Features [last - first, ...] of the images at the places first, first + 1, ..., last - 1."""


@dataclass(frozen=True, kw_only=True)
class Features:
    """The features of the first images, and how many of them had to be extracted."""

    rows: Tensor
    """float32 [images, ...]; a private view of the file, so that writing to it changes no other."""
    extracted: int
    """Images that had to be extracted for it, 0 when others had done it all."""


def whole_chunks(images: float, *, total: int) -> int:
    """Returns the most images, at most `images` of `total`, that are extracted in whole chunks.

    Chunks are the same for all trials, so that features are equal to the last bit whichever trial
    extracts them, and however many: they end at 8, 16, 32, 64, 128, 192, ... and at `total`.
    """
    if images >= total:
        return total
    if images < SMALLEST_CHUNK:
        return 0
    if images >= _LARGEST_CHUNK:
        return int(images) // _LARGEST_CHUNK * _LARGEST_CHUNK
    return 1 << (int(images).bit_length() - 1)


def end_of_chunk(first: int, *, total: int) -> int:
    """Returns the place that follows the last image of the chunk that begins at `first`."""
    size = min(max(first, SMALLEST_CHUNK), _LARGEST_CHUNK)
    return min(first + size, total)


def balanced_order(labels: Tensor) -> Tensor:
    """Returns a random but fixed order [N], int64, of which each beginning is balanced.

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
    """Returns the features of the first `images` of `total` images, from `path` while it lasts.

    Missing rows are extracted and appended, while other trials that want more wait; `images` must
    be what `whole_chunks` gives. A damaged file is begun anew. `path` lies in a folder of its
    trunk's own within the store's. Raises `InputError` when the disk is full or cannot be written.
    """
    try:
        if (rows := _read(path, images=images, shape=shape)) is not None:
            return Features(rows=rows, extracted=0)
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(_lock_of(path)):
            _delete_if_damaged(path, shape=shape)
            with _writable(path) as file:
                ready = _committed(file)
                if ready < images:
                    _make_room(path, needed_bytes=(images - ready) * _BYTES * prod(shape))
                    _append(file, ready, images, total=total, shape=shape, extract=extract)
                rows = _mapped(file, images=images, shape=shape)
    except OSError as error:
        if error.errno in _NO_ROOM:
            raise InputError(_no_room(path.parent, "more space than is left")) from error
        raise InputError(
            f"The feature store {path.parent} cannot be written ({error.strerror}), but the "
            "features of frozen models are kept there; choose a folder with the rights to write."
        ) from error
    return Features(rows=rows, extracted=max(0, images - ready))


def evict(store: Path, *, keep: Path, capacity_bytes: float) -> None:
    """Deletes files of `store`, except for `keep`, until they take at most `capacity_bytes`.

    The least recently used go first. A file that is being written stays; one that is being read
    goes, and is gone from the disk when its last reader is. Locks stay, because others may wait at
    them.
    """
    files = _files(store)
    stored_bytes = sum(status.st_size for status in files.values())
    for path in sorted(files, key=lambda path: files[path].st_mtime_ns):
        if stored_bytes <= capacity_bytes:
            return
        if path == keep:
            continue
        try:
            with FileLock(_lock_of(path), blocking=False):
                path.unlink(missing_ok=True)
        except Timeout:
            continue
        stored_bytes -= files[path].st_size


def _read(path: Path, *, images: int, shape: tuple[int, ...]) -> Tensor | None:
    """Returns the features, if the file has as many and is sound; None otherwise.

    It needs no lock: rows that count never change, and a header that is being written makes the
    file look damaged for the moment, which whoever holds the lock will not find.
    """
    try:
        with path.open("rb") as file:
            if _committed(file) < images or not _is_sound(file, shape=shape):
                return None
            os.utime(path)  # so that what is used is evicted last
            return _mapped(file, images=images, shape=shape)
    except FileNotFoundError:  # never written, or evicted just now
        return None


def _mapped(file: BinaryIO, *, images: int, shape: tuple[int, ...]) -> Tensor:
    return map_private(file, dtype=np.float32, shape=(images, *shape), offset=_HEADER_BYTES)


def _writable(path: Path) -> BinaryIO:
    path.touch()
    return path.open("r+b")


def _committed(file: BinaryIO) -> int:
    """Returns the number of the file's rows that count."""
    return int.from_bytes(os.pread(file.fileno(), 8, 0), "little")  # 0 of an empty file


def _delete_if_damaged(path: Path, *, shape: tuple[int, ...]) -> None:
    """Deletes the file unless its rows are as they were written; the caller holds its lock.

    It is not overwritten, because others may still read it. Files of earlier versions have no
    digest, and go in silence.
    """
    with suppress(FileNotFoundError), path.open("rb") as file:
        if _is_sound(file, shape=shape):
            return
        if any(_stored_digest(file)):
            _log.warning("The stored features in %s are damaged; they are extracted anew.", path)
        path.unlink()


def _is_sound(file: BinaryIO, *, shape: tuple[int, ...]) -> bool:
    rows = _committed(file)
    if not rows:
        return not any(_stored_digest(file))
    end = _end_of_rows(rows, shape=shape)
    return end <= os.fstat(file.fileno()).st_size and digest_of(
        file, first=_HEADER_BYTES, last=end
    ) == _stored_digest(file)


def _stored_digest(file: BinaryIO) -> bytes:
    return os.pread(file.fileno(), _DIGEST_BYTES, 8)


def _end_of_rows(rows: int, *, shape: tuple[int, ...]) -> int:
    return _HEADER_BYTES + rows * _BYTES * prod(shape)


def _make_room(path: Path, *, needed_bytes: int) -> None:
    """Evicts others so that the store keeps its share of the disk with `needed_bytes` more."""
    store = path.parents[1]
    stored_bytes = sum(status.st_size for status in _files(store).values())
    room_bytes = stored_bytes + shutil.disk_usage(store).free
    evict(store, keep=path, capacity_bytes=_DISK_SHARE * room_bytes - needed_bytes)
    if needed_bytes > shutil.disk_usage(store).free:
        raise InputError(_no_room(path.parent, f"{needed_bytes / 1e9:.1f} GB"))


def _files(store: Path) -> dict[Path, os.stat_result]:
    files = {}
    for path in store.glob("*/*.f32"):
        with suppress(FileNotFoundError):  # another evicts as well
            files[path] = path.stat()
    return files


def _append(
    file: BinaryIO,
    ready: int,
    images: int,
    *,
    total: int,
    shape: tuple[int, ...],
    extract: Extract,
) -> None:
    """Extracts rows `ready` to `images` into the file; the caller holds its lock.

    Appended rather than written to a memory map, where a full disk kills the process.
    """
    file.truncate(_end_of_rows(ready, shape=shape))  # a killed writer's rows
    file.seek(0, os.SEEK_END)
    while ready < images:
        last = end_of_chunk(ready, total=total)
        rows = extract(ready, last).to("cpu", torch.float32)
        file.write(rows.contiguous().numpy().tobytes())
        ready = last
    _flush(file)  # before they count: the header may outlive a crash that rows do not
    digest = digest_of(file, first=_HEADER_BYTES, last=_end_of_rows(ready, shape=shape))
    file.seek(0)
    file.write(ready.to_bytes(8, "little") + digest)
    _flush(file)


def _flush(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())


def _lock_of(path: Path) -> Path:
    return path.with_suffix(".lock")


def _no_room(folder: Path, needed: str) -> str:
    return (
        f"The features of a frozen model need {needed} in {folder}; free some space there, choose "
        "another folder for the cache, or lower `max_train_images`."
    )
