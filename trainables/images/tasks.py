"""The task: the source of its images, and its classes and splits."""

import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, fields, replace
from difflib import get_close_matches
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.fs
from pydantic import ConfigDict

from trainables.errors import InputError, Key, first_line
from trainables.images.catalog import (
    TEST,
    TRAIN,
    VALIDATION,
    Catalog,
    Origin,
    Part,
    PassedOver,
)
from trainables.images.decode import BadImageError, bad_images, decode_all, short_side
from trainables.images.digits import Digits
from trainables.images.folders import find_class_folders
from trainables.images.hub import load_hub
from trainables.images.parquet import find_parquet
from trainables.images.schema import ColumnNames
from trainables.images.splits import SplitRows, plan_splits
from trainables.local_path import LocalPath

DIGITS = "digits"
_FORMS = (
    f"{DIGITS!r}, a folder of Parquet files, a folder of class folders, a URI of Parquet files "
    "or the name of a Hugging Face dataset"
)
_HUB_NAME = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")
_SAMPLED_SIDES = 64
_CHECKED_SIDE = 8


@dataclass(frozen=True, kw_only=True)
class TaskSource:
    """The source of a task's images; plain values that travel to every node.

    The config's `task` section is this record with what a sweep adds to it. The config checks
    types; the record itself checks its values.
    """

    __pydantic_config__ = ConfigDict(extra="forbid")

    source: LocalPath
    """`digits`, a folder or URI of Parquet files, a folder of class folders (with or without
    train / validation / test above them), or the name of a Hugging Face dataset."""
    subset: str | None = None
    """Configuration of a Hugging Face dataset, or of a folder that holds several, each in a folder
    of its name; `None` is the default."""
    revision: str | None = None
    """Commit of a Hugging Face dataset; `None` is its newest."""
    image_column: str | None = None
    """Column of the images in Parquet files; `None` finds it from the schema."""
    label_column: str | None = None
    """Column of the labels in Parquet files; `None` finds it from the schema."""
    classes: tuple[str, ...] | None = None
    """Names of the classes to keep, in label order; `None` keeps all."""
    max_train_images: int | None = None
    """Largest number of training images, drawn in proportion to the classes; `None` keeps all."""
    max_validation_images: int | None = None
    """Largest number of validation images, drawn alike: measuring a rung costs a pass over them."""
    split_seed: int = 0
    """Seed of the splits that are cut because the source lacks them, and of the samples."""

    def __post_init__(self) -> None:
        if self.classes is not None:
            object.__setattr__(self, "classes", tuple(self.classes))
        rules: tuple[tuple[str, bool, str], ...] = (
            ("source", bool(self.source.strip()), f"must say where the images are: {_FORMS}"),
            (
                "classes",
                self.classes is None or len(set(self.classes)) == len(self.classes) >= 2,
                "must name at least two classes, each once; leave it out to keep all",
            ),
            (
                "max_train_images",
                self.max_train_images is None or self.max_train_images >= 2,
                "must be at least 2 images; leave it out to keep all",
            ),
            (
                "max_validation_images",
                self.max_validation_images is None or self.max_validation_images >= 2,
                "must be at least 2 images; leave it out to keep all",
            ),
            ("split_seed", 0 <= self.split_seed < 2**64, "must lie in [0, 2**64)"),
        )
        for name, holds, rule in rules:
            if not holds:
                raise InputError(Key(name), f"={getattr(self, name)!r} {rule}.")

    def to_dict(self) -> dict[str, Any]:
        """Returns plain JSON types."""
        values = asdict(self)
        return values | {"classes": None if self.classes is None else list(self.classes)}

    def set_values(self) -> dict[str, Any]:
        """Returns what is not at its default, as plain JSON types: all that tells tasks apart."""
        return {
            f.name: value
            for f, value in zip(fields(self), self.to_dict().values(), strict=True)
            if value != f.default
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "TaskSource":
        """Returns the source whose `to_dict` gave `values`; other names raise."""
        known = [f.name for f in fields(cls)]
        if unknown := sorted(set(values) - set(known)):
            raise InputError(
                f"A task source has no field {unknown[0]!r}; its fields are {', '.join(known)}."
            )
        return cls(**values)


@dataclass(frozen=True, kw_only=True)
class TaskSummary:
    """The classes and splits of a task, from its labels and a few image headers."""

    class_names: tuple[str, ...]
    official: tuple[str, ...]
    """The parts that the source itself is cut in; `train` alone is one pool."""
    class_counts: Mapping[str, Mapping[str, int]]
    """Images of every class in every split, after cutting and sampling."""
    typical_side: int
    """Median pixels of the short side of the first training images, before resizing."""
    passed_over: tuple[PassedOver, ...]
    """Files, folders, splits and rows of the source that are left out, by rule."""

    @property
    def unused(self) -> tuple[str, ...]:
        """The places of everything that is left out."""
        return tuple(place for passed in self.passed_over for place in passed.places)

    @property
    def images(self) -> dict[str, int]:
        """The number of images in every split."""
        return {split: sum(counts.values()) for split, counts in self.class_counts.items()}


def inspect(source: TaskSource) -> TaskSummary:
    """Summarises the task as a sweep sees it; reads labels only, so it takes seconds at most.

    Raises `InputError` for everything that can be wrong but the pixels of an image.
    """
    origin = find_origin(source)
    catalog, plan = read_plan(source, origin)
    class_counts = {}
    for name, rows in plan.items():
        labels = catalog.parts[rows.part].labels[rows.indices]
        counts = np.bincount(labels, minlength=len(catalog.class_names)).tolist()
        class_counts[name] = dict(zip(catalog.class_names, counts, strict=True))
    return TaskSummary(
        class_names=catalog.class_names,
        official=tuple(name for name in (TRAIN, VALIDATION, TEST) if name in catalog.parts),
        class_counts=class_counts,
        typical_side=_typical_side(catalog, plan),
        passed_over=(*origin.passed_over, *catalog.passed_over),
    )


def _typical_side(catalog: Catalog, plan: Mapping[str, SplitRows]) -> int:
    """Returns the median side of a few images; if one of them is bad, all bad ones are told."""
    train = catalog.parts[TRAIN]
    first = train.rows[plan[TRAIN].indices][:_SAMPLED_SIDES]
    try:
        return int(median(map(short_side, train.images(first))))
    except BadImageError:
        _check_images(catalog, plan)
        raise


def _check_images(catalog: Catalog, plan: Mapping[str, SplitRows]) -> None:
    """Raises one `InputError` that lists all images of the task that cannot be decoded."""
    bad = []
    for name, part in catalog.parts.items():
        used = [rows.indices for rows in plan.values() if rows.part == name]
        images = part.images(part.rows[np.sort(np.concatenate(used))])
        decoded = decode_all(images, resolution=_CHECKED_SIDE)
        bad += [image for image in decoded if isinstance(image, BadImageError)]
    if bad:
        raise bad_images(bad)


def read_plan(source: TaskSource, origin: Origin) -> tuple[Catalog, dict[str, SplitRows]]:
    """Returns the catalogue of `origin` with the classes that `source` keeps, and its splits."""
    catalog = origin.read()
    if source.classes is not None:
        catalog = _keep_classes(catalog, source.classes)
    plan = plan_splits(
        {name: part.labels for name, part in catalog.parts.items()},
        catalog.class_names,
        seed=source.split_seed,
        max_train_images=source.max_train_images,
        max_validation_images=source.max_validation_images,
    )
    return catalog, plan


def find_origin(source: TaskSource) -> Origin:
    """Tells the form of `source.source` and lists its files; raises `InputError` if it has none."""
    text = source.source
    columns = ColumnNames(image=source.image_column, label=source.label_column)
    if text == DIGITS:
        return Digits()
    path = Path(text).expanduser()
    try:
        if "://" in text:
            return _origin_at_uri(text, columns, subset=source.subset)
        if path.is_dir():
            return _origin_in_folder(path, columns, subset=source.subset)
    except (pa.ArrowException, OSError) as error:
        raise InputError(
            Key("source"),
            f"={text!r} cannot be listed ({first_line(error)}); give a folder, or a URI that "
            "pyarrow can open (file://, s3://, gs://), with the rights to read it.",
        ) from error
    if path.exists():
        raise InputError(
            Key("source"), f"={text!r} is a file, but must be a folder; give its folder."
        )
    if not _HUB_NAME.fullmatch(text):
        raise InputError(Key("source"), f"={text!r} does not exist{_near(path)}; give {_FORMS}.")
    return load_hub(text, columns, subset=source.subset, revision=source.revision, near=_near(path))


def _origin_in_folder(path: Path, columns: ColumnNames, *, subset: str | None) -> Origin:
    if not any(path.iterdir()):
        raise InputError(f"The folder {path} is empty, but must hold the images; give {_FORMS}.")
    folder = path.absolute().as_posix()
    filesystem = pyarrow.fs.LocalFileSystem()
    return find_parquet(filesystem, folder, columns, subset=subset) or find_class_folders(path)


def _origin_at_uri(uri: str, columns: ColumnNames, *, subset: str | None) -> Origin:
    filesystem, folder = pyarrow.fs.FileSystem.from_uri(uri)
    if isinstance(filesystem, pyarrow.fs.LocalFileSystem):
        return _origin_in_folder(Path(folder), columns, subset=subset)
    if found := find_parquet(filesystem, folder, columns, subset=subset):
        return found
    raise InputError(
        Key("source"),
        f"={uri!r} holds no Parquet file, and class folders are only read from this machine; "
        "write it as Parquet or copy it here.",
    )


def _near(path: Path) -> str:
    """Names the folder that may have been meant by a `path` that is not there, in brackets."""
    found = Path(path.anchor)
    for name in path.parts[bool(path.anchor) :]:
        if (found / name).is_dir():
            found /= name
            continue
        with suppress(OSError):
            folders = [entry.name for entry in found.iterdir() if entry.is_dir()]
            if near := get_close_matches(name, folders, n=1):
                found /= near[0]
                continue
        return ""
    return f" (the nearest is {found})"


def _keep_classes(catalog: Catalog, classes: tuple[str, ...]) -> Catalog:
    for name in classes:
        if name not in catalog.class_names:
            known = ", ".join(catalog.class_names)
            raise InputError(
                Key("classes"), f" names {name!r}, but the task's classes are {known}."
            )
    new_label = np.full(len(catalog.class_names), -1, dtype=np.int64)
    new_label[[catalog.class_names.index(name) for name in classes]] = np.arange(len(classes))

    def kept(part: Part) -> Part:
        labels = new_label[part.labels]
        inside = labels >= 0
        return replace(part, labels=labels[inside], rows=part.rows[inside])

    parts = {name: kept(part) for name, part in catalog.parts.items()}
    return Catalog(class_names=classes, parts=parts)
