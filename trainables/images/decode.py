"""Decoding: any image file to an RGB square."""

import os
import warnings
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache, partial
from io import BytesIO
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from trainables.errors import InputError, first_line
from trainables.images.catalog import RawImage
from trainables.images.faults import refusal

_CHUNK = 32  # images a job: small ones take less time to decode than a job to hand over
_MAX_THREADS = 16
_READABLE = "every image must be readable, so replace it or remove it"
_NOT_DECODED = frozenset({"BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF"})
"""Formats that Pillow knows but has no decoder of its own for; for EPS it runs Ghostscript."""
_SIXTEEN_BIT_MODES = ("I", "I;16", "I;16L", "I;16B", "I;16N")


def open_image(file: Path | BytesIO) -> Image.Image:
    """Opens an image file of whatever format; its pixels are decoded later."""
    Image.init()
    return Image.open(file, formats=[name for name in Image.OPEN if name not in _NOT_DECODED])


def is_image(path: Path) -> bool:
    """Tells by its content whether a file is an image; one that may not be read counts as one."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # an image may be suspiciously large and still be one
            Image.open(path, formats=_signed_formats()).close()
    except (PermissionError, Image.DecompressionBombError):
        return True
    except Exception:  # Pillow's parsers let errors of their own through, as for text that fits
        return False
    return True


@cache
def _signed_formats() -> tuple[str, ...]:
    """Returns the formats that are known by how they begin; others fit text by chance."""
    Image.init()
    return tuple(
        name
        for name, (_, begins) in Image.OPEN.items()
        if begins is not None and name not in _NOT_DECODED
    )


class BadImageError(InputError):
    """An image that cannot be decoded: what is wrong with it, and the rule."""

    @property
    def fault(self) -> str:
        """Says what is wrong, as a clause of a sentence that may list more."""
        sentence: str = self.args[0]
        return sentence[0].lower() + sentence[1:]


def bad_images(found: Sequence[BadImageError]) -> InputError:
    """Returns one refusal of all images in `found`."""
    return refusal([image.fault for image in found], rule=_READABLE)


def decode_square(raw: RawImage, *, resolution: int) -> NDArray[np.uint8]:
    """Decodes `raw` to uint8 [3, resolution, resolution], turned upright as its EXIF says.

    The short side is resized to `resolution`, antialiased bicubic, and the middle square is kept.
    Transparency lies on white, 16-bit grey is scaled to 8 bits, grey becomes three equal channels,
    and an animation gives its first frame. Raises `BadImageError`, which names the place, where it
    cannot be decoded.
    """
    try:
        with raw.open() as image:
            # Lets the JPEG decoder skip detail that the resize would throw away.
            image.draft(None, (2 * resolution, 2 * resolution))
            upright = ImageOps.exif_transpose(image)
            square = ImageOps.fit(
                _to_rgb(upright), (resolution, resolution), method=Image.Resampling.BICUBIC
            )
    except MemoryError:
        raise
    except Exception as error:  # Pillow's decoders let their parsers' own errors through
        raise _unreadable(raw, error) from error
    return np.asarray(square).transpose(2, 0, 1)


def decode_all(
    raw_images: Iterator[RawImage], *, resolution: int
) -> Iterator[bytes | BadImageError]:
    """Yields the pixels of `raw_images`, or what is wrong, in their order, by a few threads.

    Pillow decodes outside the interpreter's lock. No more than a few chunks are held at a time.
    """
    threads = min(os.cpu_count() or 1, _MAX_THREADS)
    decode = partial(_decode_chunk, resolution=resolution)
    waiting: deque[Future[list[bytes | BadImageError]]] = deque()
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


def short_side(raw: RawImage) -> int:
    """Returns the pixels of the short side, from the header alone; `BadImageError` if it is bad."""
    try:
        with raw.open() as image:
            return min(image.size)
    except Exception as error:  # as above
        raise _unreadable(raw, error) from error


def _decode_chunk(raw_images: list[RawImage], *, resolution: int) -> list[bytes | BadImageError]:
    decoded: list[bytes | BadImageError] = []
    for raw in raw_images:
        try:
            decoded.append(decode_square(raw, resolution=resolution).tobytes())
        except BadImageError as bad:
            decoded.append(bad)
    return decoded


def _unreadable(raw: RawImage, error: Exception) -> BadImageError:
    # Pillow puts the address of its buffer into the message, which tells a reader nothing.
    reason = first_line(error).split(" <_io.BytesIO")[0]
    return BadImageError(
        f"The image at {raw.where} cannot be decoded ({reason})", f", but {_READABLE}."
    )


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode in _SIXTEEN_BIT_MODES:
        values = np.asarray(image).clip(0, 65535)
        return Image.fromarray((values // 257).astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        raise ValueError("floating-point pixels have no agreed range")
    if image.has_transparency_data:
        over = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", over.size, "white"), over).convert("RGB")
    return image.convert("RGB")
