"""Decoding: any image file to an RGB square."""

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from trainables.errors import InputError, first_line
from trainables.images.catalog import RawImage

_SIXTEEN_BIT_MODES = ("I", "I;16", "I;16L", "I;16B", "I;16N")


def decode_square(raw: RawImage, *, resolution: int) -> NDArray[np.uint8]:
    """Decodes `raw` to uint8 [3, resolution, resolution], turned upright as its EXIF says.

    The short side is resized to `resolution`, antialiased bicubic, and the middle square is kept.
    Transparency lies on white, 16-bit grey is scaled to 8 bits, grey becomes three equal channels,
    and an animation gives its first frame. An image that cannot be decoded raises `InputError`
    with its place.
    """
    try:
        with raw.open() as image:
            # Lets the JPEG decoder skip detail that the resize would throw away.
            image.draft(None, (2 * resolution, 2 * resolution))
            upright = ImageOps.exif_transpose(image)
            square = ImageOps.fit(
                _to_rgb(upright), (resolution, resolution), method=Image.Resampling.BICUBIC
            )
    except (InputError, MemoryError):
        raise
    except Exception as error:  # Pillow's decoders let their parsers' own errors through
        raise _unreadable(raw, error) from error
    return np.asarray(square).transpose(2, 0, 1)


def short_side(raw: RawImage) -> int:
    """Returns the pixels of the image's short side, from its header alone."""
    try:
        with raw.open() as image:
            return min(image.size)
    except InputError:
        raise
    except Exception as error:  # as above
        raise _unreadable(raw, error) from error


def _unreadable(raw: RawImage, error: Exception) -> InputError:
    # Pillow puts the address of its buffer into the message, which tells a reader nothing.
    reason = first_line(error).split(" <_io.BytesIO")[0]
    return InputError(
        f"The image at {raw.where} cannot be decoded ({reason}); "
        "every image must be readable, so replace it or remove it."
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
