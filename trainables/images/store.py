"""The image store: a task decoded once per node, shared by its trials without copies."""

import errno
import hashlib
import json
import os
import shutil
import tempfile
from collections import deque
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from filelock import FileLock
from torch import Tensor

from trainables.errors import InputError, Key
from trainables.images.catalog import Catalog, Origin, Part, RawImage
from trainables.images.decode import decode_square
from trainables.images.memory_map import map_private
from trainables.images.splits import SplitRows
from trainables.images.tasks import TaskSource, find_origin, read_plan

_FORMAT = 1  # raise it when the files, the decoding or the cuts change
_INDEX = "store.json"
_CHUNK = 32  # images a job: small ones take less time to decode than a job to hand over
_MAX_THREADS = 16
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@dataclass(frozen=True, kw_only=True)
class Split:
    """One split, in the order of the source."""

    images: Tensor
    """uint8 [N, 3, R, R]; a private view of the file, so that writing to it changes no other."""
    labels: Tensor
    """int64 [N], index into the store's class names."""

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True, kw_only=True)
class ImageStore:
    """A task's images, decoded, at one resolution."""

    class_names: tuple[str, ...]
    resolution: int
    """Side of the square images in pixels."""
    splits: Mapping[str, Split]
    """`train`, `validation` and `test`, and `devtest` where one is held out."""
    folder: Path
    """Its folder, whose name depends on everything that the images depend on."""


def open_store(source: TaskSource, *, resolution: int, cache_dir: Path) -> ImageStore:
    """Returns the images of `source` as squares of side `resolution`, decoded once per node.

    They lie under `cache_dir` in a folder named after everything that they depend on. The first
    process that finds none decodes, while others wait; the folder appears whole or, if the writer
    is killed, not at all. Raises `InputError` for bad sources, corrupt images and a full disk.
    """
    if resolution < 1:
        raise InputError(Key("resolution"), f"={resolution} must be at least 1 pixel.")
    origin = find_origin(source)
    name = _fingerprint(source, origin, resolution)
    folder = cache_dir / name
    if not folder.exists():
        try:
            cache_dir.mkdir(parents=True, exist_ok=True)
            with FileLock(cache_dir / f"{name}.lock"):
                if not folder.exists():
                    _write_store(folder, source, origin, resolution=resolution)
        except OSError as error:
            if error.errno in _NO_ROOM:
                raise _no_room(cache_dir, "more space than is left") from error
            raise InputError(
                f"The image cache {cache_dir} cannot be written ({error.strerror}), but decoded "
                "images are kept there; choose a folder with the rights to write."
            ) from error
    return _read_store(folder)


def _fingerprint(source: TaskSource, origin: Origin, resolution: int) -> str:
    content = json.dumps([_FORMAT, source.set_values(), resolution, origin.identity()])
    return hashlib.sha256(content.encode()).hexdigest()[:16]


def _read_store(folder: Path) -> ImageStore:
    index = json.loads((folder / _INDEX).read_text(encoding="utf-8"))
    splits = {}
    for name in index["splits"]:
        labels = np.load(folder / f"{name}.labels.npy")
        splits[name] = Split(
            images=_mapped(folder / f"{name}.npy"), labels=torch.from_numpy(labels)
        )
    return ImageStore(
        class_names=tuple(index["class_names"]),
        resolution=index["resolution"],
        splits=splits,
        folder=folder,
    )


def _mapped(path: Path) -> Tensor:
    with path.open("rb") as file:
        np.lib.format.read_magic(file)
        shape, _, dtype = np.lib.format.read_array_header_1_0(file)
        return map_private(file, dtype=dtype, shape=shape, offset=file.tell())


def _write_store(folder: Path, source: TaskSource, origin: Origin, *, resolution: int) -> None:
    """Decodes `origin` into `folder`; the caller holds its lock."""
    catalog, plan = read_plan(source, origin)
    needed_bytes = sum(len(rows.indices) for rows in plan.values()) * 3 * resolution**2
    if needed_bytes > shutil.disk_usage(folder.parent).free:
        raise _no_room(folder.parent, f"{needed_bytes / 1e9:.1f} GB")

    for stale in folder.parent.glob(f".{folder.name}-*"):  # a killed writer left it
        shutil.rmtree(stale, ignore_errors=True)
    # Next to its final place, because a rename is atomic within a file system only.
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        _write_files(temporary, catalog, plan, resolution=resolution)
        temporary.rename(folder)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def _write_files(
    folder: Path, catalog: Catalog, plan: Mapping[str, SplitRows], *, resolution: int
) -> None:
    with ExitStack() as stack:
        files: dict[str, BinaryIO] = {}
        for name, rows in plan.items():
            labels = catalog.parts[rows.part].labels[rows.indices]
            np.save(folder / f"{name}.labels.npy", labels)
            files[name] = stack.enter_context((folder / f"{name}.npy").open("wb"))
            _write_header(files[name], (len(labels), 3, resolution, resolution))
        for part_name, part in catalog.parts.items():
            cuts = {name: rows for name, rows in plan.items() if rows.part == part_name}
            _decode_part(part, cuts, files, resolution=resolution)
        for file in files.values():
            file.flush()
            os.fsync(file.fileno())  # a rename may outlive a crash that the content does not
    index = {"class_names": catalog.class_names, "resolution": resolution, "splits": list(plan)}
    (folder / _INDEX).write_text(json.dumps(index), encoding="utf-8")


def _write_header(file: BinaryIO, shape: tuple[int, ...]) -> None:
    header = {"descr": "|u1", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, header)


def _decode_part(
    part: Part, cuts: Mapping[str, SplitRows], files: Mapping[str, BinaryIO], *, resolution: int
) -> None:
    """Appends the images of `part`, in its order, each to the file of its split.

    Appended rather than written to a memory map, where a full disk kills the process.
    """
    split_of = np.full(len(part.rows), "", dtype=object)
    for name, rows in cuts.items():
        split_of[rows.indices] = name
    used = split_of != ""
    raw_images = part.images(part.rows[used])
    for name, pixels in zip(
        split_of[used], _decoded(raw_images, resolution=resolution), strict=True
    ):
        files[name].write(pixels)


def _decoded(raw_images: Iterator[RawImage], *, resolution: int) -> Iterator[bytes]:
    """Yields the pixels of `raw_images` in their order, decoded by a few threads.

    Pillow decodes outside the interpreter's lock. No more than a few chunks are held at a time.
    """
    threads = min(os.cpu_count() or 1, _MAX_THREADS)
    decode = partial(_decode_chunk, resolution=resolution)
    waiting: deque[Future[list[bytes]]] = deque()
    with ThreadPoolExecutor(threads, thread_name_prefix="decode") as pool:
        try:
            while chunk := list(islice(raw_images, _CHUNK)):
                waiting.append(pool.submit(decode, chunk))
                if len(waiting) > 2 * threads:
                    yield from waiting.popleft().result()
            while waiting:
                yield from waiting.popleft().result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _decode_chunk(raw_images: list[RawImage], *, resolution: int) -> list[bytes]:
    return [decode_square(raw, resolution=resolution).tobytes() for raw in raw_images]


def _no_room(cache_dir: Path, needed: str) -> InputError:
    return InputError(
        f"The decoded images need {needed} in {cache_dir}; free some space there, choose another "
        "folder, or lower ",
        Key("resolution"),
        " or ",
        Key("max_train_images"),
        ".",
    )
