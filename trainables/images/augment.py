"""Augmentation and normalisation of whole batches, on the device that trains."""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

# The largest changes, which strength 1 makes; a smaller strength makes its share of them.
_MAX_CROP = 0.6  # share of the area cut away
_MAX_TURN = math.radians(20)
_MAX_SHEAR = 0.3  # along either axis, as in RandAugment (arXiv 1909.13719)
_MAX_COLOR = 0.4  # of brightness, contrast and saturation, either way
_LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601


def augment(images: Tensor, *, strength: float, mirror: bool, generator: Generator) -> Tensor:
    """Returns `images` [B, 3, R, R], 0-255, each changed in its own way; float32, 0-255.

    A crop of random place and size, a small turn, a shear and, with `mirror`, a flip for half of
    them, in one bilinear resampling that reflects at the borders; then brightness, contrast and
    saturation. Magnitudes grow with `strength` in [0, 1]; 0 changes nothing, not even by a flip.
    The random numbers are drawn where `generator` lives: one on the images' device spares a copy.
    """
    if not 0 <= strength <= 1:
        raise ValueError(f"strength={strength} must lie in [0, 1]; 0 means none.")
    pixels = images.to(torch.float32)
    if strength == 0:
        return pixels
    draws = torch.rand(10, len(images), generator=generator, device=generator.device)
    draws = draws.to(images.device)
    grid = F.affine_grid(
        _affine(draws[:7], strength=strength, mirror=mirror),
        list(images.shape),
        align_corners=False,
    )
    moved = F.grid_sample(pixels, grid, padding_mode="reflection", align_corners=False)
    return _recolor(moved, draws[7:], strength=strength)


def model_inputs(
    images: Tensor,
    *,
    resolution: int,
    mean: Tensor | Sequence[float],
    std: Tensor | Sequence[float],
) -> Tensor:
    """Returns `images` [B, 3, R, R], 0-255, as the network takes them: normalised [B, 3, r, r].

    Resized antialiased bilinear where R differs from r. `mean` and `std` [3] are of pixels in
    0-1, as timm gives them; tensors on the images' device spare a copy.
    """
    pixels = images.to(torch.float32)
    if images.shape[-1] != resolution:
        size = (resolution, resolution)
        pixels = F.interpolate(pixels, size, mode="bilinear", antialias=True, align_corners=False)
    center = 255 * torch.as_tensor(mean, dtype=torch.float32, device=images.device)
    spread = 255 * torch.as_tensor(std, dtype=torch.float32, device=images.device)
    return (pixels - center.view(3, 1, 1)) / spread.view(3, 1, 1)


def _affine(draws: Tensor, *, strength: float, mirror: bool) -> Tensor:
    """Returns [B, 2, 3] from uniform `draws` [7, B]: the place in its source of each output pixel.

    A flip comes first, then the shear [[1, x], [y, 1]], the turn, the crop's size and its place.
    """
    side = (1 - _MAX_CROP * strength * draws[0]).sqrt()  # of the crop, as a share of the image's
    angle = _MAX_TURN * strength * (2 * draws[1] - 1)
    shift_x, shift_y = (1 - side) * (2 * draws[2] - 1), (1 - side) * (2 * draws[3] - 1)
    flip = torch.where(draws[4] < 0.5, -1.0, 1.0) if mirror else torch.ones_like(side)
    shear_x, shear_y = _MAX_SHEAR * strength * (2 * draws[5:] - 1)
    cos, sin = side * angle.cos(), side * angle.sin()
    top = torch.stack([flip * (cos - sin * shear_y), cos * shear_x - sin, shift_x], dim=1)
    bottom = torch.stack([flip * (sin + cos * shear_y), sin * shear_x + cos, shift_y], dim=1)
    return torch.stack([top, bottom], dim=1)


def _recolor(pixels: Tensor, draws: Tensor, *, strength: float) -> Tensor:
    """Changes brightness, contrast and saturation of `pixels` [B, 3, R, R] by `draws` [3, B].

    With b, c, s the three factors, g a pixel's grey and m the image's mean grey:
    b · (c · (s·x + (1-s)·g) + (1-c)·m), which is one weighted sum of x, g and m.
    """
    factors = (1 + _MAX_COLOR * strength * (2 * draws - 1)).view(3, -1, 1, 1, 1)
    brightness, contrast, saturation = factors.unbind()
    red, green, blue = pixels.unbind(dim=1)
    grey = (_LUMA[0] * red + _LUMA[1] * green + _LUMA[2] * blue).unsqueeze(1)  # [B, 1, R, R]
    mean = grey.mean(dim=(1, 2, 3), keepdim=True)
    added = brightness * (contrast * (1 - saturation) * grey + (1 - contrast) * mean)
    return (brightness * contrast * saturation * pixels).add_(added).clamp_(0, 255)
