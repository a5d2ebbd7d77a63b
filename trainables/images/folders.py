"""Folders of image files, one folder a class."""

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from trainables.errors import InputError
from trainables.images.catalog import TRAIN, Catalog, Part, RawImage, part_named

SUFFIXES = frozenset(
    {
        ".bmp",
        ".gif",
        ".jfif",
        ".jpeg",
        ".jpg",
        ".pbm",
        ".pgm",
        ".png",
        ".ppm",
        ".tif",
        ".tiff",
        ".webp",
    }
)
"""Endings, in either case, that make a file an image; other files are passed over."""


@dataclass(frozen=True, kw_only=True)
class ClassFolders:
    """Class folders: one pool of them, or one under each of `train`, `validation` and `test`."""

    root: Path
    files: Mapping[str, Mapping[str, Sequence[Path]]]
    """By part and class, in the order of their names."""
    unused: tuple[str, ...]

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
    of that name that holds images is a class like any other.
    """
    parts = {folder: part for folder in _folders(root) if (part := part_named(folder.name))}
    if any(part == TRAIN and any(_folders(folder)) for folder, part in parts.items()):
        files: dict[str, dict[str, list[Path]]] = {}
        for folder, part in parts.items():
            if part in files:
                raise InputError(
                    f"{root} has two folders for {part}, {folder.name} among them, but a part "
                    "is one folder; join or rename them."
                )
            files[part] = _class_files(folder)
        unused = tuple(str(folder) for folder in _folders(root) if folder not in parts)
    else:
        files, unused = {TRAIN: _class_files(root)}, ()
    for part, classes in files.items():
        if odd := sorted(set(classes) ^ set(files[TRAIN])):
            raise InputError(
                f"The folders train and {part} of {root} differ in class {odd[0]!r}, but all "
                "parts must have the same classes; add or remove that folder."
            )
    return ClassFolders(root=root, files=files, unused=unused)


def _class_files(folder: Path) -> dict[str, list[Path]]:
    classes = {entry.name: list(_images_under(entry)) for entry in _folders(folder)}
    if not classes:
        raise InputError(
            f"{folder} holds neither Parquet files nor class folders; it must hold one or the "
            "other, with a folder of images for each class."
        )
    for name, files in classes.items():
        if not files:
            raise InputError(
                f"The class folder {folder / name} holds no image, but every class needs some; "
                f"add images ({', '.join(sorted(SUFFIXES))}) or remove the folder."
            )
    return classes


def _folders(root: Path) -> list[Path]:
    return sorted(e for e in root.iterdir() if e.is_dir() and not e.name.startswith("."))


def _images_under(folder: Path) -> Iterator[Path]:
    for directory, subfolders, names in os.walk(folder):
        subfolders.sort()
        for path in (Path(directory, name) for name in sorted(names)):
            if not path.name.startswith(".") and path.suffix.lower() in SUFFIXES:
                yield path


def _part(classes: Mapping[str, Sequence[Path]]) -> Part:
    paths = [path for files in classes.values() for path in files]
    labels = np.repeat(np.arange(len(classes)), [len(files) for files in classes.values()])
    return Part(
        labels=labels.astype(np.int64), rows=np.arange(len(paths)), images=partial(_images, paths)
    )


def _images(paths: Sequence[Path], rows: NDArray[np.intp]) -> Iterator[RawImage]:
    for row in rows:
        yield RawImage(where=str(paths[row]), open=partial(Image.open, paths[row]))
