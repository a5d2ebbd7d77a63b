"""Sparsity: which values of a backbone's weights stay, so that exactly the share asked for goes.

Of N values in all, round(sparsity * N) go. Every layer keeps at least one value (ours), because a
layer of zeros passes nothing on (layer collapse, arXiv 2006.05467).
"""

from collections.abc import Mapping, Sequence
from enum import StrEnum
from math import floor, prod

import torch
from torch import Tensor, nn

from trainables.backbones.layers import backbone_weights
from trainables.errors import InputError


class SparsityScope(StrEnum):
    """The part of the model that is as sparse as asked, within which values are ranked."""

    LAYER = "layer"
    """Each layer: all layers are equally sparse."""
    GLOBAL = "global"
    """All layers together: the scores say how sparse each becomes."""


def check_sparsity(model: nn.Module, sparsity: float) -> None:
    """Raises `InputError` where the weights below the head cannot be that sparse."""
    weights = backbone_weights(model)
    if not weights:
        raise InputError(
            f"{type(model).__name__} has no convolution or linear layer below its head whose "
            "weights could be masked; choose another method or backbone."
        )
    kept_values([weight.numel() for weight in weights.values()], sparsity)


def kept_values(sizes: Sequence[int], sparsity: float) -> int:
    """Counts the values that stay in all, of layers of these sizes.

    Raises `InputError` where that leaves a layer without any.
    """
    if not 0 <= sparsity < 1:
        raise InputError(f"sparsity={sparsity!r} must lie in [0, 1); 0 means dense.")
    total = sum(sizes)
    kept = total - round(sparsity * total)
    if kept < len(sizes):
        raise InputError(
            f"sparsity={sparsity!r} leaves {kept} of {total} values to {len(sizes)} layers, and "
            f"each keeps at least one; it must be at most {1 - len(sizes) / total:.6g}."
        )
    return kept


def keep_largest(
    scores: Mapping[str, Tensor], *, sparsity: float, scope: SparsityScope
) -> dict[str, Tensor]:
    """Masks, True at the largest scores, of which exactly round(sparsity * N) values are False.

    `scores` are one tensor for each weight, of its shape and on one device. Ties go to the value
    that comes first; NaN is the smallest score. With scope `layer` the layers' counts are
    their exact shares rounded so that the total holds. Raises `InputError` as `kept_values` does.
    """
    kept = kept_values([score.numel() for score in scores.values()], sparsity)
    if scope is SparsityScope.GLOBAL:
        return _largest_of_all(scores, kept)
    return keep_counts(scores, uniform_counts(_shapes(scores), sparsity=sparsity))


def keep_counts(scores: Mapping[str, Tensor], counts: Mapping[str, int]) -> dict[str, Tensor]:
    """Masks, True at so many largest scores of each weight; ties as in `keep_largest`."""
    return {
        name: _largest(score.flatten(), counts[name]).view(score.shape)
        for name, score in scores.items()
    }


def uniform_counts(shapes: Mapping[str, Sequence[int]], *, sparsity: float) -> dict[str, int]:
    """Counts the values that each weight keeps where all are equally sparse."""
    sizes = {name: prod(shape) for name, shape in shapes.items()}
    kept = kept_values(list(sizes.values()), sparsity)
    shares = {name: (1 - sparsity) * size for name, size in sizes.items()}
    return _rounded(shares, sizes=sizes, total=kept)


def erdos_renyi_counts(shapes: Mapping[str, Sequence[int]], *, sparsity: float) -> dict[str, int]:
    """Counts the values that each weight keeps under Erdos-Renyi-Kernel (arXiv 1911.11134).

    A weight's density is in proportion to sum(shape) / prod(shape), so that small layers are
    denser; those that would be denser than 1 are dense, and the others share what is left.
    """
    sizes = {name: prod(shape) for name, shape in shapes.items()}
    kept = kept_values(list(sizes.values()), sparsity)
    sums = {name: sum(shape) for name, shape in shapes.items()}
    dense: set[str] = set()
    while True:
        others = [name for name in sizes if name not in dense]
        left = kept - sum(sizes[name] for name in dense)
        factor = left / max(1, sum(sums[name] for name in others))
        full = {name for name in others if factor * sums[name] > sizes[name]}
        if not full:
            break
        dense |= full
    shares = {n: float(sizes[n]) if n in dense else factor * sums[n] for n in sizes}
    return _rounded(shares, sizes=sizes, total=kept)


def _rounded(
    shares: Mapping[str, float], *, sizes: Mapping[str, int], total: int
) -> dict[str, int]:
    """Whole numbers next to `shares`, each from 1 to its size, that add up to `total`.

    Largest remainders: the count furthest from its share gains or gives first, and ties go to the
    first of them.
    """
    counts = {name: min(max(floor(share), 1), sizes[name]) for name, share in shares.items()}
    while (short := total - sum(counts.values())) != 0:
        step = 1 if short > 0 else -1
        able = [name for name in counts if 1 <= counts[name] + step <= sizes[name]]
        able.sort(key=lambda name: step * (counts[name] - shares[name]))
        for name in able[: abs(short)]:
            counts[name] += step
    return counts


def _largest_of_all(scores: Mapping[str, Tensor], kept: int) -> dict[str, Tensor]:
    """Takes the largest of each weight, so that none goes without, then the largest of the rest."""
    mask = torch.cat([_largest(score.flatten(), 1) for score in scores.values()])
    flat = torch.cat([score.flatten() for score in scores.values()])
    rest = (~mask).nonzero().squeeze(1)
    mask[rest] = _largest(flat[rest], kept - len(scores))
    parts = mask.split([score.numel() for score in scores.values()])
    pairs = zip(scores.items(), parts, strict=True)
    return {name: part.view(score.shape) for (name, score), part in pairs}


def _largest(scores: Tensor, count: int) -> Tensor:
    """Mask [n] of the `count` largest of `scores` [n]; by a threshold, as sorting would be slow."""
    scores = scores.masked_fill(scores.isnan(), -torch.inf)
    if count == 0:
        return torch.zeros_like(scores, dtype=torch.bool)
    threshold = scores.kthvalue(len(scores) - count + 1).values
    mask = scores > threshold
    tied = (scores == threshold).nonzero().squeeze(1)
    mask[tied[: count - int(mask.count_nonzero())]] = True
    return mask


def _shapes(scores: Mapping[str, Tensor]) -> dict[str, Sequence[int]]:
    return {name: tuple(score.shape) for name, score in scores.items()}
