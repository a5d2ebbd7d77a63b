"""Folding: filters that resemble one another are merged instead of dropped.

After "Forget the Data and Fine-Tuning! Just Fold the Network to Compress" (arXiv 2502.10216): the
channels of a group are clustered by k-means on all parameters that make or carry them; each cluster
becomes one channel with the mean parameters, and the layers that read it add up the columns of the
cluster. Channels that are exact duplicates fold without loss. Free of data; the paper re-estimates
batch-norm statistics afterwards, because a mean of filters varies less than each of them.
"""

import warnings
from collections.abc import Sequence

import torch
from threadpoolctl import threadpool_limits
from torch import Tensor, nn

from trainables.pruning.absorption import channel_tensors
from trainables.pruning.channels.groups import ChannelGroup, Side
from trainables.pruning.reductions import Reduction

_STARTS = 3  # k-means++ starts; the tightest clustering is taken


def folded(
    model: nn.Module,
    group: ChannelGroup,
    *,
    blocks: Sequence[Tensor],
    kept: int,
) -> Reduction:
    """`kept` clusters of the channels of `group`, equally many in each of its `blocks`.

    The first channel of each cluster stands for it. Equal weights give equal clusters, so that
    trials of any seed fold a backbone alike.
    """
    features = _features(model, group)
    stands = torch.empty(group.width, dtype=torch.long)
    for block in blocks:
        labels = _clusters(features[block], kept // len(blocks))
        for label in labels.unique():
            cluster = block[labels == label]
            stands[cluster] = cluster.min()
    return Reduction(group=group, stands=stands)


def _features(model: nn.Module, group: ChannelGroup) -> Tensor:
    """[width, d]: the parameters of each channel, every layer scaled to a mean square norm of 1."""
    parts = []
    for member in group.members:
        if member.side is Side.IN:
            continue
        rows = [
            tensor.detach().to("cpu", torch.float64).movedim(dim, 0).reshape(tensor.shape[dim], -1)
            for tensor, dim in channel_tensors(model, member.name)
            if isinstance(tensor, nn.Parameter)
        ]
        if not rows:
            continue
        own = torch.cat(rows, dim=1)[torch.tensor(member.indices)]
        part = torch.zeros(group.width, own.shape[1], dtype=torch.float64)
        part.index_add_(0, torch.tensor(member.channels), own)
        parts.append(part / part.square().sum(dim=1).mean().sqrt().clamp_min(1e-30))
    features = torch.cat(parts, dim=1)
    # the same distances in at most `width` dimensions
    coordinates: Tensor = torch.linalg.qr(features.T, mode="r").R
    return coordinates.T


def _clusters(points: Tensor, count: int) -> Tensor:
    """A label in [0, count) for each of `points` [n, d]; every label occurs."""
    if count == len(points):
        return torch.arange(count)
    from sklearn.cluster import KMeans  # a second's work that other criteria do not need
    from sklearn.exceptions import ConvergenceWarning

    means = KMeans(n_clusters=count, n_init=_STARTS, random_state=0)
    with (
        warnings.catch_warnings(),
        threadpool_limits(limits=1),  # threads would add up in any order
    ):
        # fewer distinct points than clusters: mended below
        warnings.simplefilter("ignore", ConvergenceWarning)
        labels = torch.from_numpy(means.fit_predict(points.numpy())).long()
    for label in range(count):
        if not (labels == label).any():
            largest = labels.bincount(minlength=count).argmax()
            labels[(labels == largest).nonzero().flatten()[-1]] = label
    return labels
