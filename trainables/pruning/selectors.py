"""Selectors: how much each channel of a group is worth.

Every selector has the same shape, `Evidence -> scores [width]`; to add one, add a function and its
line in `SELECTORS`. A channel that several layers make, as in a residual stream, is worth the sum
over them.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from trainables.backbones.layers import is_norm
from trainables.errors import InputError
from trainables.pruning.channels.groups import ChannelGroup, Side, TransposedConvolution
from trainables.pruning.plan import Criterion

Filters = tuple[tuple[Tensor, Tensor], ...]
"""A pair for each producing layer: filters [n, fan_in] and the channel of each, [n]."""


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """The values to judge the channels of one group by; float64 on the CPU."""

    width: int
    """Channels in the group."""
    filters: Filters
    """The weights that make the channels."""
    scales: tuple[tuple[Tensor, Tensor], ...] = ()
    """A pair for each norm with a gain: gains [n] and the channel of each, [n]."""
    gates: Tensor | None = None
    """[images, width], see `trainables.pruning.saliency`; only for criteria in `DATA_DRIVEN`."""
    generator: torch.Generator
    """For random choices."""


Selector = Callable[[Evidence], Tensor]
"""Evidence -> scores [width]; the highest are kept."""


def l1(evidence: Evidence) -> Tensor:
    """Sum of the absolute weights (Li et al. 2017, arXiv 1608.08710)."""
    return _summed(evidence, order=1)


def l2(evidence: Evidence) -> Tensor:
    """Euclidean norm of the weights."""
    return _summed(evidence, order=2)


def batch_norm_scale(evidence: Evidence) -> Tensor:
    """Absolute gain |γ| of the norms that the channels pass (Liu et al. 2017, arXiv 1708.06519).

    A group without such a norm, as between the two layers of a squeeze-and-excite gate, is ranked
    by the Euclidean norm of its filters, which scales its channels as a gain would.
    """
    if not evidence.scales:
        return l2(evidence)
    scores = torch.zeros(evidence.width, dtype=torch.float64)
    for gains, channels in evidence.scales:
        scores.index_add_(0, channels, gains.abs())
    return scores


def geometric_median(evidence: Evidence) -> Tensor:
    """Sum of the Euclidean distances to all other filters of the layer.

    Filters near the geometric median go, because the others can stand in for them (FPGM, He et al.
    2019, arXiv 1811.00250).
    """
    scores = torch.zeros(evidence.width, dtype=torch.float64)
    for rows, channels in evidence.filters:
        scores.index_add_(0, channels, torch.cdist(rows, rows).sum(dim=1))
    return scores


def taylor(evidence: Evidence) -> Tensor:
    """(mean over images of ∂L/∂z)², with z = 1 a gate on the channel.

    The squared first-order estimate of how the loss changes without the channel (Molchanov et al.
    2019, arXiv 1906.10771, eq. 8), gates where the channel is read, so that everything on its way
    counts, norms included.
    """
    return _gates(evidence).mean(dim=0).square()


def fisher(evidence: Evidence) -> Tensor:
    """Mean over images of (∂L/∂z)², with z = 1 a gate on the channel: the gates' empirical Fisher.

    Estimates how the loss rises without the channel at a minimum (Theis et al. 2018, arXiv
    1801.05787; shared gates of coupled layers as in Liu et al. 2021, arXiv 2108.00708).
    """
    return _gates(evidence).square().mean(dim=0)


def random(evidence: Evidence) -> Tensor:
    """Uniform in [0, 1), whatever the weights."""
    return torch.rand(evidence.width, generator=evidence.generator, dtype=torch.float64)


SELECTORS: Mapping[Criterion, Selector] = {
    Criterion.L1: l1,
    Criterion.L2: l2,
    Criterion.BATCH_NORM_SCALE: batch_norm_scale,
    Criterion.GEOMETRIC_MEDIAN: geometric_median,
    Criterion.TAYLOR: taylor,
    Criterion.FISHER: fisher,
    Criterion.RANDOM: random,
    # how many clusters a layer keeps; which filters form one is k-means' (folding.py)
    Criterion.FOLDING: geometric_median,
}
DATA_DRIVEN = frozenset({Criterion.TAYLOR, Criterion.FISHER})
"""Criteria that need labelled images."""


def evidence_of(
    model: nn.Module,
    group: ChannelGroup,
    *,
    generator: torch.Generator,
    gates: Tensor | None = None,
) -> Evidence:
    """The evidence of `model` on the channels of `group`.

    It is float64 on one device, so that every machine keeps the same filters.
    """
    return Evidence(
        width=group.width,
        filters=_filters(model, group),
        scales=_scales(model, group),
        gates=gates,
        generator=generator,
    )


def _filters(model: nn.Module, group: ChannelGroup) -> Filters:
    pairs = []
    for member in group.members:
        if member.side is not Side.OUT or member.name not in group.producers:
            continue
        layer = model.get_submodule(member.name)
        weight = model.get_parameter(f"{member.name}.weight").detach().to("cpu", torch.float64)
        if isinstance(layer, TransposedConvolution):
            weight = weight.transpose(0, 1)
        rows = weight.flatten(1)[torch.tensor(member.indices)]
        pairs.append((rows, torch.tensor(member.channels)))
    return tuple(pairs)


def _scales(model: nn.Module, group: ChannelGroup) -> tuple[tuple[Tensor, Tensor], ...]:
    pairs = []
    modules = dict(model.named_modules())
    for member in group.members:
        norm = modules.get(member.name)  # a bare parameter is no module
        if norm is None or not is_norm(norm):
            continue
        if norm.weight is not None:
            gains = norm.weight.detach().to("cpu", torch.float64)[torch.tensor(member.indices)]
            pairs.append((gains, torch.tensor(member.channels)))
    return tuple(pairs)


def _summed(evidence: Evidence, *, order: int) -> Tensor:
    scores = torch.zeros(evidence.width, dtype=torch.float64)
    for rows, channels in evidence.filters:
        norms = torch.linalg.vector_norm(rows, ord=order, dim=1)
        scores.index_add_(0, channels, norms)
    return scores


def _gates(evidence: Evidence) -> Tensor:
    if evidence.gates is None:
        raise InputError(
            "A criterion that ranks by gradients needs them; give prune a way to measure them on "
            "labelled images."
        )
    return evidence.gates
