"""The catalogue of a source: everything that is known of its images before they are decoded."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

TRAIN, VALIDATION, TEST, DEVTEST = "train", "validation", "test", "devtest"

_SHOWN_PLACES = 3
_PART_NAMES = {
    "train": TRAIN,
    "training": TRAIN,
    "validation": VALIDATION,
    "valid": VALIDATION,
    "val": VALIDATION,
    "dev": VALIDATION,
    "test": TEST,
    "testing": TEST,
}


@dataclass(frozen=True, kw_only=True)
class RawImage:
    """An image that has not been decoded yet."""

    where: str
    """The file, and the row in it, as messages name them."""
    open: Callable[[], Image.Image]
    """Opens it; called once, in a decoding thread."""


@dataclass(frozen=True, kw_only=True)
class Part:
    """The images that a source holds under one name: its official train, validation or test."""

    labels: NDArray[np.int64]
    """[n] index into the catalogue's class names."""
    rows: NDArray[np.intp]
    """[n] place of each of them in the source, ascending."""
    images: Callable[[NDArray[np.intp]], Iterator[RawImage]]
    """The images at some ascending `rows`, in that order, streamed."""


@dataclass(frozen=True, kw_only=True)
class PassedOver:
    """The part of a task that one rule leaves out of a task."""

    rule: str
    """The files or rows that are left out, in words: "files that ..."."""
    count: int
    """Files or rows, those below the folders that are left out whole included."""
    places: tuple[str, ...]
    """Files, folders or splits, as messages name them."""

    def __str__(self) -> str:
        more = ", …" if len(self.places) > _SHOWN_PLACES else ""
        return f"{self.rule}: {self.count} ({', '.join(self.places[:_SHOWN_PLACES])}{more})"


@dataclass(frozen=True, kw_only=True)
class Catalog:
    """The classes and labels of a source; images are read on demand."""

    class_names: tuple[str, ...]
    parts: Mapping[str, Part]
    """By official name; a source that was never cut has `train` alone."""
    passed_over: tuple[PassedOver, ...] = ()
    """Rows that turn out to be left out once the labels are read, by rule."""


class Origin(Protocol):
    """A place that images come from, listed but not read."""

    @property
    def passed_over(self) -> tuple[PassedOver, ...]:
        """Everything that is there and is left out, by rule."""
        ...

    def identity(self) -> list[Any]:
        """Returns JSON values that change whenever the images may have changed."""
        ...

    def read(self) -> Catalog:
        """Reads the labels, decodes nothing. Raises `InputError` where the catalogue is unfit."""
        ...


def part_named(name: str) -> str | None:
    """Returns `train`, `validation` or `test` if `name` is one of their usual spellings."""
    return _PART_NAMES.get(name.lower())
