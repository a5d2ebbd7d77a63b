from collections.abc import Callable
from functools import partial
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from tests.trainables.images.writers import Png
from trainables.errors import InputError
from trainables.images.catalog import RawImage
from trainables.images.decode import decode_square, short_side


def raw(image: Image.Image, file_format: str = "PNG", **options: object) -> RawImage:
    buffer = BytesIO()
    image.save(buffer, file_format, **options)
    return RawImage(where="cats.png", open=partial(Image.open, BytesIO(buffer.getvalue())))


def flat(mode: str, color: float | tuple[int, ...]) -> Callable[[], RawImage]:
    return lambda: raw(Image.new(mode, (6, 4), color))


@pytest.mark.parametrize(
    ("image", "color"),
    [
        (flat("RGB", (10, 20, 30)), (10, 20, 30)),
        (flat("L", 77), (77, 77, 77)),
        (flat("1", 1), (255, 255, 255)),
        (flat("I;16", 257 * 99), (99, 99, 99)),
        (flat("RGBA", (10, 20, 30, 255)), (10, 20, 30)),
        (flat("RGBA", (10, 20, 30, 0)), (255, 255, 255)),
        (flat("LA", (100, 0)), (255, 255, 255)),
        (lambda: raw(Image.new("P", (6, 4), 0)), (0, 0, 0)),
        (lambda: raw(Image.new("P", (6, 4), 0), transparency=0), (255, 255, 255)),
        (lambda: raw(Image.new("CMYK", (6, 4), (0, 0, 0, 255)), "TIFF"), (0, 0, 0)),
    ],
)
def test_every_mode_becomes_rgb(image: Callable[[], RawImage], color: tuple[int, int, int]) -> None:
    pixels = decode_square(image(), resolution=5)
    assert pixels.shape == (3, 5, 5)
    assert pixels.dtype == np.uint8
    assert (pixels == np.array(color)[:, None, None]).all()


def test_the_middle_square_is_kept() -> None:
    image = Image.new("L", (30, 10), 0)
    image.paste(200, (10, 0, 20, 10))
    assert (decode_square(raw(image), resolution=10) == 200).all()


def test_shrinking_is_antialiased() -> None:
    stripes = np.tile(np.array([0, 255], dtype=np.uint8), (64, 32))
    pixels = decode_square(raw(Image.fromarray(stripes)), resolution=8)
    assert np.abs(pixels.astype(int) - 127).max() < 12


def test_photos_are_turned_upright() -> None:
    image = Image.new("L", (16, 16), 0)
    image.paste(255, (0, 0, 16, 8))  # the upper half is white
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned a quarter clockwise
    pixels = decode_square(raw(image, "JPEG", exif=exif), resolution=16)
    assert pixels[:, :, 10:].min() > 240
    assert pixels[:, :, :6].max() < 15


def test_large_jpegs_decode_as_other_formats_do() -> None:
    gradient = np.tile(np.arange(256, dtype=np.uint8), (256, 1))
    small = [
        decode_square(raw(Image.fromarray(gradient), form), resolution=16).astype(int)
        for form in ("JPEG", "PNG")
    ]
    assert np.abs(small[0] - small[1]).max() <= 3


@pytest.mark.parametrize("bytes_left", [0, 20, 45])
def test_a_corrupt_image_is_named(png: Png, bytes_left: int) -> None:
    content = png(5)[:bytes_left]
    broken = RawImage(where="cats.parquet, row 17", open=lambda: Image.open(BytesIO(content)))
    with pytest.raises(
        InputError, match=r"image at cats\.parquet, row 17 cannot be decoded \(.+\)"
    ):
        decode_square(broken, resolution=8)


def test_messages_hold_no_addresses() -> None:
    with pytest.raises(InputError, match=r"^((?!0x).)*$"):
        decode_square(
            RawImage(where="a", open=lambda: Image.open(BytesIO(b"no image"))), resolution=8
        )


def test_floating_point_pixels_are_refused() -> None:
    with pytest.raises(InputError, match="no agreed range"):
        decode_square(raw(Image.new("F", (4, 4)), "TIFF"), resolution=4)


def test_the_short_side_is_read_from_the_header() -> None:
    assert short_side(raw(Image.new("L", (30, 10)))) == 10
