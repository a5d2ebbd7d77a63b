"""Folders of image files, one folder a class."""

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trainables.errors import InputError
from trainables.images.catalog import TRAIN, Catalog, Part, PassedOver, RawImage, part_named
from trainables.images.decode import is_image, open_image
from trainables.images.walk import Place, Walk, files_below, place_of, places_above

SUFFIXES = frozenset(
    {
        ".avif",
        ".bmp",
        ".gif",
        ".jfif",
        ".jp2",
        ".jpe",
        ".jpeg",
        ".jpg",
        ".pbm",
        ".pgm",
        ".png",
        ".ppm",
        ".tga",
        ".tif",
        ".tiff",
        ".webp",
    }
)
"""Endings, in either case, that make a file an image; other files are judged by their content."""
_NO_IMAGE = "files that are no image by ending or content"
_CLASSLESS = "files in no class folder"
_PARTLESS = "folders that are not named train, validation or test"


@dataclass(frozen=True, kw_only=True)
class ClassFolders:
    """Class folders: one pool of them, or one under each of `train`, `validation` and `test`."""

    root: Path
    files: Mapping[str, Mapping[str, Sequence[Path]]]
    """By part and class, in the order of their names."""
    passed_over: tuple[PassedOver, ...]

    def identity(self) -> list[Any]:
        return [
            [part, str(path.relative_to(self.root)), status.st_size, status.st_mtime_ns]
            for part, classes in sorted(self.files.items())
            for paths in classes.values()
            for path in paths
            for status in (path.stat(),)
        ]

    def read(self) -> Catalog:
        class_names = tuple(self.files[TRAIN])
        return Catalog(
            class_names=class_names,
            parts={part: _part(classes) for part, classes in self.files.items()},
        )


def find_class_folders(root: Path) -> ClassFolders:
    """Lists the images under `root`. Raises `InputError` for an empty class or unequal classes.

    `root` is cut in parts if its folder `train` (or `training`) holds folders itself; a folder
    of that name that holds images is a class like any other. Links are followed; one that leads
    nowhere is refused, and so is a folder that cannot be listed.
    """
    walk = Walk()
    entries = walk.entries(root)
    parts = {e.name: part for e in entries if e.is_dir() and (part := part_named(e.name))}
    cut = any(part == TRAIN and _holds_folders(root / name) for name, part in parts.items())
    if not cut:
        files = {TRAIN: _class_files(root, entries, walk)}
    else:
        files = _part_files(root, parts, walk)
        for entry in entries:
            if entry.name not in parts:
                rule = _PARTLESS if entry.is_dir() else _CLASSLESS
                walk.pass_over(rule, entry.path, files=files_below(entry))
    walk.check(
        rule="links must lead somewhere and every class needs images, so add what is missing "
        "or remove these"
    )
    for part, classes in files.items():
        if odd := sorted(set(classes) ^ set(files[TRAIN])):
            raise InputError(
                f"The folders train and {part} of {root} differ in class "
                f"{', '.join(map(repr, odd))}, but all parts must have the same classes; add or "
                "remove these folders."
            )
    return ClassFolders(root=root, files=files, passed_over=walk.passed_over())


def _part_files(
    root: Path, parts: Mapping[str, str], walk: Walk
) -> dict[str, dict[str, list[Path]]]:
    """Returns the files by part and class; `parts` are the parts by the names of their folders."""
    files: dict[str, dict[str, list[Path]]] = {}
    for name, part in parts.items():
        if part in files:
            raise InputError(
                f"{root} has two folders for {part}, {name} among them, but a part is one folder; "
                "join or rename them."
            )
        files[part] = _class_files(root / name, walk.entries(root / name), walk)
    return files


def _class_files(
    folder: Path, entries: Sequence[os.DirEntry[str]], walk: Walk
) -> dict[str, list[Path]]:
    above = places_above(folder) | {place_of(folder)}
    classes: dict[str, list[Path]] = {}
    for entry in entries:
        if not entry.is_dir():
            walk.pass_over(_CLASSLESS, entry.path)
            continue
        seen = above | places_above(entry.path)
        if walk.descends(entry, seen):
            classes[entry.name] = list(_images_under(entry.path, seen, walk))
            if not classes[entry.name]:
                walk.fault(f"the class folder {entry.path} holds no image")
    if not classes:
        left_out = "; ".join(map(str, walk.passed_over()))
        raise InputError(
            f"{folder} holds neither Parquet files nor class folders; it must hold one or the "
            "other, with a folder of images for each class"
            f"{f' (passed over: {left_out})' if left_out else ''}."
        )
    return classes


def _images_under(folder: str, seen: set[Place], walk: Walk) -> Iterator[Path]:
    """Yields the images in `folder`, then those in the folders below it, by name."""
    entries = walk.entries(folder)
    for path in (Path(entry.path) for entry in entries if not entry.is_dir()):
        if path.suffix.lower() in SUFFIXES or is_image(path):
            yield path
        else:
            walk.pass_over(_NO_IMAGE, str(path))
    for entry in entries:
        if entry.is_dir() and walk.descends(entry, seen):
            yield from _images_under(entry.path, seen, walk)


def _holds_folders(folder: Path) -> bool:
    return any(entry.is_dir() for entry in Walk().entries(folder))


def _part(classes: Mapping[str, Sequence[Path]]) -> Part:
    paths = [path for files in classes.values() for path in files]
    labels = np.repeat(np.arange(len(classes)), [len(files) for files in classes.values()])
    return Part(
        labels=labels.astype(np.int64), rows=np.arange(len(paths)), images=partial(_images, paths)
    )


def _images(paths: Sequence[Path], rows: NDArray[np.intp]) -> Iterator[RawImage]:
    for row in rows:
        yield RawImage(where=str(paths[row]), open=partial(open_image, paths[row]))
