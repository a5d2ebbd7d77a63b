"""The 1,797 handwritten digits that come with scikit-learn: a task without any download."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from trainables.images.catalog import TRAIN, Catalog, Part, PassedOver, RawImage


@dataclass(frozen=True, kw_only=True)
class Digits:
    """One pool of 8x8 grey digits."""

    passed_over: tuple[PassedOver, ...] = ()

    def identity(self) -> list[Any]:
        return ["scikit-learn digits"]

    def read(self) -> Catalog:
        from sklearn.datasets import load_digits  # a second's work that other sources do not need

        digits = load_digits()
        pixels = np.rint(digits.images * (255 / 16)).astype(np.uint8)  # [1797, 8, 8], was 0..16
        part = Part(
            labels=digits.target.astype(np.int64),
            rows=np.arange(len(pixels)),
            images=partial(_images, pixels),
        )
        return Catalog(class_names=tuple(map(str, digits.target_names)), parts={TRAIN: part})


def _images(pixels: NDArray[np.uint8], rows: NDArray[np.intp]) -> Iterator[RawImage]:
    for row in rows:
        yield RawImage(where=f"digits, row {row}", open=partial(Image.fromarray, pixels[row]))
