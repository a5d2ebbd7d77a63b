"""Mixup and CutMix: images that are partly another image, with the targets to match.

timm's `Mixup` draws from NumPy's global state, so that a resumed trial would not repeat; its
mathematics are a few lines, which are here with a generator of their own.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Targets:
    """Classes that a batch shows: `share` of each image is of `labels`, the rest of `partners`."""

    labels: Tensor
    """int64 [B]."""
    partners: Tensor | None = None
    """int64 [B]; None where nothing is mixed."""
    share: float = 1.0

    def part(self, rows: slice) -> "Targets":
        """The targets of some of the images."""
        partners = None if self.partners is None else self.partners[rows]
        return Targets(labels=self.labels[rows], partners=partners, share=self.share)


def mix(
    images: Tensor, labels: Tensor, *, mixup: float, cutmix: float, seed: int
) -> tuple[Tensor, Targets]:
    """`images` [B, C, H, W] and `labels` [B], each mixed with those of another of the batch.

    Mixup (arXiv 1710.09412): λ·x + (1-λ)·x', λ from Beta(mixup, mixup). CutMix (arXiv 1905.04899):
    a box of x' in x, of 1-λ of the area and anywhere, cut at the borders; λ from Beta(cutmix,
    cutmix), and the share is what is left of x in truth. Both strengths positive: a coin decides.
    Neither: nothing changes. One λ and one permutation of partners a batch, drawn on the host from
    `seed`, so that every device draws the same.
    """
    if mixup == 0 and cutmix == 0:
        return images, Targets(labels=labels)
    draws = np.random.default_rng(seed)
    partner = torch.from_numpy(draws.permutation(len(images))).to(images.device)
    boxed = draws.random() < 0.5 if mixup > 0 and cutmix > 0 else cutmix > 0
    share = float(draws.beta(cutmix, cutmix) if boxed else draws.beta(mixup, mixup))
    if boxed:
        rows, columns = _box(draws, images.shape[-2:], share=share)
        mixed = images.clone()
        mixed[..., rows, columns] = images[partner][..., rows, columns]
        share = 1 - mixed[0, 0, rows, columns].numel() / mixed[0, 0].numel()
    else:
        mixed = torch.lerp(images[partner], images, share)
    return mixed, Targets(labels=labels, partners=labels[partner], share=share)


def _box(draws: np.random.Generator, size: torch.Size, *, share: float) -> tuple[slice, slice]:
    """Rows and columns of a box of 1 - `share` of the area with its centre anywhere."""
    sides = []
    for length in size:
        half = length * np.sqrt(1 - share) / 2
        centre = draws.integers(length)
        low, high = round(centre - half), round(centre + half)
        sides.append(slice(max(0, low), min(length, high)))
    return sides[0], sides[1]
