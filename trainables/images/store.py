"""The image store: a task decoded once per node, shared by its trials without copies."""

import errno
import hashlib
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from filelock import FileLock
from torch import Tensor

from trainables.errors import InputError, Key
from trainables.images.catalog import Catalog, Origin, Part
from trainables.images.decode import BadImageError, bad_images, decode_all
from trainables.images.memory_map import map_npy
from trainables.images.seal import DamagedError, seal, sealed_content
from trainables.images.splits import SplitRows
from trainables.images.tasks import TaskSource, find_origin, read_plan

_log = logging.getLogger(__name__)

_FORMAT = 2  # raise it when the files, the decoding or the cuts change
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
    digest: str | None = None
    """Changes with every class, label and pixel; None for images that were never in a folder."""


def open_store(
    source: TaskSource, *, resolution: int, cache_dir: Path, trusting: bool = False
) -> ImageStore:
    """Returns the images of `source` as squares of side `resolution`, decoded once per node.

    They lie under `cache_dir` in a folder named after everything that they depend on. The first
    process that finds none decodes, while others wait; the folder appears whole or, if the writer
    is killed, not at all. Its files are compared with their digests, when `trusting` only those
    that were written to since this node last did so, and a damaged folder is made anew. Raises
    `InputError` for bad sources, corrupt images, of which it lists all, and a full disk.
    """
    if resolution < 1:
        raise InputError(Key("resolution"), f"={resolution} must be at least 1 pixel.")
    origin = find_origin(source)
    name = _fingerprint(source, origin, resolution)
    folder = cache_dir / name
    try:
        cache_dir.mkdir(parents=True, exist_ok=True)
        with suppress(FileNotFoundError, DamagedError):
            return _read_store(folder, trusting=trusting)
        with FileLock(cache_dir / f"{name}.lock"):
            if not _is_sound(folder, trusting=trusting):  # another may have made it meanwhile
                _write_store(folder, source, origin, resolution=resolution)
            return _read_store(folder, trusting=True)
    except OSError as error:
        if error.errno in _NO_ROOM:
            raise _no_room(cache_dir, "more space than is left") from error
        raise InputError(
            f"The image cache {cache_dir} cannot be written or read ({error.strerror}), but "
            "decoded images are kept there; choose a folder with the rights to write."
        ) from error


def _fingerprint(source: TaskSource, origin: Origin, resolution: int) -> str:
    content = json.dumps([_FORMAT, source.set_values(), resolution, origin.identity()])
    return hashlib.sha256(content.encode()).hexdigest()[:16]


def _is_sound(folder: Path, *, trusting: bool) -> bool:
    """Tells whether a store is in `folder`, as it was written; warns of a damaged one."""
    try:
        sealed_content(folder, trusting=trusting)
    except FileNotFoundError:
        return False
    except DamagedError as error:
        _log.warning(
            "The decoded images in %s are damaged (%s); they are made anew.", folder, error
        )
        return False
    return True


def _read_store(folder: Path, *, trusting: bool) -> ImageStore:
    index, digest = sealed_content(folder, trusting=trusting)
    splits = {}
    for name in index["splits"]:
        labels = np.load(folder / f"{name}.labels.npy")
        splits[name] = Split(
            images=map_npy(folder / f"{name}.npy"), labels=torch.from_numpy(labels)
        )
    return ImageStore(
        class_names=tuple(index["class_names"]),
        resolution=index["resolution"],
        splits=splits,
        folder=folder,
        digest=digest,
    )


def _write_store(folder: Path, source: TaskSource, origin: Origin, *, resolution: int) -> None:
    """Decodes `origin` into `folder`; the caller holds its lock."""
    catalog, plan = read_plan(source, origin)
    needed_bytes = sum(len(rows.indices) for rows in plan.values()) * 3 * resolution**2
    if needed_bytes > shutil.disk_usage(folder.parent).free:
        raise _no_room(folder.parent, f"{needed_bytes / 1e9:.1f} GB")

    if folder.exists():
        folder.rename(folder.parent / f".{folder.name}-damaged-{os.getpid()}")
    for stale in folder.parent.glob(f".{folder.name}-*"):  # a killed writer left it
        if stale.is_file():
            stale.unlink()
        else:
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
        bad: list[BadImageError] = []
        for name, rows in plan.items():
            labels = catalog.parts[rows.part].labels[rows.indices]
            np.save(folder / f"{name}.labels.npy", labels)
            files[name] = stack.enter_context((folder / f"{name}.npy").open("wb"))
            _write_header(files[name], (len(labels), 3, resolution, resolution))
        for part_name, part in catalog.parts.items():
            cuts = {name: rows for name, rows in plan.items() if rows.part == part_name}
            bad += _decode_part(part, cuts, files, resolution=resolution)
        if bad:
            raise bad_images(bad)
        for file in files.values():
            file.flush()
            os.fsync(file.fileno())  # a rename may outlive a crash that the content does not
    index = {"class_names": catalog.class_names, "resolution": resolution, "splits": list(plan)}
    seal(folder, index, files=[f"{name}{end}" for name in plan for end in (".npy", ".labels.npy")])


def _write_header(file: BinaryIO, shape: tuple[int, ...]) -> None:
    header = {"descr": "|u1", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, header)


def _decode_part(
    part: Part, cuts: Mapping[str, SplitRows], files: Mapping[str, BinaryIO], *, resolution: int
) -> list[BadImageError]:
    """Appends the images of `part`, in its order, each to the file of its split; returns the bad.

    Appended rather than written to a memory map, where a full disk kills the process.
    """
    bad = []
    split_of = np.full(len(part.rows), "", dtype=object)
    for name, rows in cuts.items():
        split_of[rows.indices] = name
    used = split_of != ""
    raw_images = part.images(part.rows[used])
    for name, pixels in zip(
        split_of[used], decode_all(raw_images, resolution=resolution), strict=True
    ):
        if isinstance(pixels, BadImageError):
            bad.append(pixels)
        else:
            files[name].write(pixels)
    return bad


def _no_room(cache_dir: Path, needed: str) -> InputError:
    return InputError(
        f"The decoded images need {needed} in {cache_dir}; free some space there, choose another "
        "folder, or lower ",
        Key("resolution"),
        " or ",
        Key("max_train_images"),
        ".",
    )
