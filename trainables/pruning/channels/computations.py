"""Rules for operations that compute: channels that meet are tied, sums over channels end them."""

import itertools
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from trainables.pruning.channels.flow import Call, Flows, Rule
from trainables.pruning.channels.ties import FIXED, NO_CHANNEL, along, collapsed, compact, spread


def pointwise(flows: Flows, call: Call) -> None:
    """Elements of several tensors meet one by one; a product may be a gate."""
    if not isinstance(call.output, Tensor):
        flows.stop(call, "an operation with several results")
        return
    parents = flows.entering(call.args, dict(call.kwargs))
    labels = parents[0].labels
    for flow in parents[1:]:
        labels = _meet(flows, labels, flow.labels)
    makers = flows.note_gate(parents) if call.name == "mul" and len(parents) == 2 else None
    flows.note(
        call.output, compact(labels.expand(call.output.shape)), parents=parents, makers=makers
    )


def _meet(flows: Flows, a: Tensor, b: Tensor) -> Tensor:
    """The labels where elements labelled `a` and `b` meet, which are tied."""
    rank = max(a.dim(), b.dim())
    a, b = (t.reshape((1,) * (rank - t.dim()) + tuple(t.shape)) for t in (a, b))
    for dim in range(rank):
        for this, other in ((a, b), (b, a)):
            if this.shape[dim] == 1 and other.shape[dim] > 1 and flows.ties.varies(other, dim):
                # one channel for many, as in attention over places: it cannot go with each
                flows.pin(this, "applies one channel to many")
                if this is a:
                    a = torch.full((), NO_CHANNEL).expand(a.shape)
                else:
                    b = torch.full((), NO_CHANNEL).expand(b.shape)
    one, other = collapsed(a), collapsed(b)
    flows.pin(torch.where(one == FIXED, other, NO_CHANNEL), "joins them with channels that stay")
    flows.pin(torch.where(other == FIXED, one, NO_CHANNEL), "joins them with channels that stay")
    flows.ties.tie(
        torch.where(one == FIXED, NO_CHANNEL, one).expand(a.shape),
        torch.where(other == FIXED, NO_CHANNEL, other).expand(b.shape),
    )
    rest = torch.where(other > FIXED, other, torch.maximum(one, other))
    return torch.where(one > FIXED, one, rest).expand(torch.broadcast_shapes(a.shape, b.shape))


def _glu(flows: Flows, call: Call) -> None:
    """One half of the channels scales the other."""
    flow = flows.first(call)
    dim = call.argument(1, "dim", -1)
    if flows.ties.varies(flow.labels, dim):
        flows.ask_for_blocks(2, along(flow.labels, dim))
    labels = _meet(flows, *flow.labels.chunk(2, dim))
    flows.note(call.output, compact(labels.expand(call.output.shape)), parents=(flow,))


def _over_places(flows: Flows, call: Call) -> None:
    """Pooling, resizing and padding of maps, whose channels lie in dimension 1."""
    flow = flows.first(call)
    first = call.first_output
    if first.dim() < 3 or any(flows.ties.varies(flow.labels, d) for d in range(2, first.dim())):
        flows.stop(call, "pooling along channels")
        return
    flows.note(first, spread(along(flow.labels, 1), 1, first.shape), parents=(flow,))


def _sum(flows: Flows, call: Call) -> None:
    """Sums and means over places pass channels on; over channels they end them.

    Over one of two dimensions with channels they are taken for sums over branches, as in split
    attention: what is added up goes together.
    """
    flow = flows.first(call)
    dims = _reduced_dims(call, flow.labels.dim())
    across = [d for d in dims if flows.ties.varies(flow.labels, d)]
    others = [d for d in range(flow.labels.dim()) if d not in dims]
    if not across or not any(flows.ties.varies(flow.labels, d) for d in others):
        _statistic(flows, call)
        return
    first = flow.labels
    for d in across:
        first = first.narrow(d, 0, 1)
    flows.ties.tie(flow.labels, first.expand(flow.labels.shape))
    _note_reduced(flows, call, flow.labels, dims)


def _statistic(flows: Flows, call: Call) -> None:
    """Variances and the like: over channels, in all or in groups as norms compute them, an end."""
    flow = flows.first(call)
    labels = flow.labels
    dims = _reduced_dims(call, labels.dim())
    if any(flows.ties.varies(labels, d) for d in dims):
        if not flows.mix():
            flows.pin(labels, "computes a statistic over channels beside layers of its own")
        labels = torch.full((), NO_CHANNEL).expand(labels.shape)
    _note_reduced(flows, call, labels, dims)


def _reduced_dims(call: Call, rank: int) -> list[int]:
    """The dimensions over which a reduction goes; all of them where it names none."""
    given = next((a for a in call.args[1:] if isinstance(a, list | tuple)), call.kwargs.get("dim"))
    if given is None and len(call.args) > 1 and type(call.args[1]) is int:
        given = [call.args[1]]
    return [d % rank for d in given] if given else list(range(rank))


def _note_reduced(flows: Flows, call: Call, labels: Tensor, dims: Sequence[int]) -> None:
    """Every output of the reduction's shape gets the first of `labels` along `dims`."""
    for d in dims:
        labels = labels.narrow(d, 0, 1)
    for tensor in tree_leaves(call.output):
        if isinstance(tensor, Tensor) and tensor.shape == call.first_output.shape:
            reduced = compact(labels.reshape(tensor.shape))
            flows.note(tensor, reduced, parents=(flows.first(call),))


def _softmax(flows: Flows, call: Call) -> None:
    """Channels that compete with one another stay or go together."""
    flow = flows.first(call)
    dim = call.args[1]
    if flows.ties.varies(flow.labels, dim):
        flows.ties.tie(flow.labels, flow.labels.narrow(dim, 0, 1).expand(flow.labels.shape))
    flows.note(call.output, flow.labels, parents=(flow,))


def _matmul(flows: Flows, call: Call) -> None:
    """Products in which at most one side's channels are rows or columns, or both are summed."""
    parents = flows.entering(call.args, dict(call.kwargs))
    shape = call.output.shape
    a, b = (_labels_of(flows, tensor) for tensor in call.args[-2:])
    varies = flows.ties.varies
    rows, columns = varies(a, -2), varies(b, -1)
    a_inner, b_inner = varies(a, -1), varies(b, -2)
    batch = any(varies(t, dim) for t in (a, b) for dim in range(t.dim() - 2))
    simple = not (rows and columns) and not (a_inner and (rows or columns or batch))
    if len(call.args) > 2 or not simple or a_inner != b_inner:
        for flow in parents:
            flows.pin(flow.labels, "multiplies matrices in which channels meet one another")
        flows.note(call.output, torch.full((), FIXED).expand(shape), parents=parents)
        return
    if a_inner:
        flows.ties.tie(a.narrow(-2, 0, 1).transpose(-1, -2), b.narrow(-1, 0, 1))
        labels = torch.full((), NO_CHANNEL).expand(shape)
    else:
        labels = _meet(flows, a.narrow(-1, 0, 1), b.narrow(-2, 0, 1)).expand(shape)
    flows.note(call.output, compact(labels), parents=parents)


def _attention(flows: Flows, call: Call) -> None:
    """Fused attention, whose scale depends on the width of queries and keys."""
    for tensor in call.args[:2]:
        if flow := flows.of(tensor):
            flows.pin(flow.labels, "scales attention by the width of its heads")
    first = call.first_output
    labels = _labels_of(flows, call.args[2]).narrow(-2, 0, 1).expand(first.shape)
    flows.note(first, labels, parents=flows.entering(call.args, dict(call.kwargs)))


def _convolution(flows: Flows, call: Call) -> None:
    """A convolution outside any layer: a filter for each channel, or an end to them."""
    maps, weight, transposed, groups = (call.args[i] for i in (0, 1, 6, 8))
    flow = flows.of(maps)
    channels = maps.shape[1]
    depthwise = groups == channels == weight.shape[0] and not transposed
    rank = call.output.dim()
    if (
        flow is None
        or not depthwise
        or any(flows.ties.varies(flow.labels, d) for d in range(2, rank))
    ):
        flows.stop(call, "a convolution outside any layer")
        return
    labels = along(flow.labels, 1)
    if filters := flows.of(weight):
        flows.ties.tie(filters.labels, spread(labels, 0, weight.shape))
    flows.declare([channels], [labels])
    flows.note(call.output, spread(labels, 1, call.output.shape), parents=(flow,))


def _normalise(flows: Flows, call: Call) -> None:
    """A norm outside any layer: batch norm by channel, group and layer norm over channels."""
    flow = flows.first(call)
    dims = [d for d in range(flow.labels.dim()) if flows.ties.varies(flow.labels, d)]
    if len(dims) > 1 or not (dims == [] or flows.mix()):
        flows.stop(call, "a norm over channels")
        return
    for tensor in call.args[1:]:
        bare = flows.of(tensor)
        if bare and dims and bare.labels.numel() == flow.labels.shape[dims[0]]:
            flows.ties.tie(bare.labels.flatten(), along(flow.labels, dims[0]))
        elif bare:
            flows.pin(bare.labels, "normalises with it")
    flows.note(call.first_output, flow.labels, parents=(flow,))


def _constant(_flows: Flows, _call: Call) -> None:
    """The result has the shape of the argument and nothing else of it."""


def _labels_of(flows: Flows, tensor: Tensor) -> Tensor:
    flow = flows.of(tensor)
    return flow.labels if flow else torch.full((), NO_CHANNEL).expand(tensor.shape)


RULES: Mapping[str, Rule] = {
    # PyTorch does not tag these as pointwise
    **dict.fromkeys(("hardsigmoid", "hardswish", "hardtanh", "mish"), pointwise),
    **dict.fromkeys(("prelu", "_prelu_kernel"), pointwise),
    **dict.fromkeys(("sum", "mean", "amax", "amin", "max", "min", "prod", "logsumexp"), _sum),
    **dict.fromkeys(("std", "var", "var_mean", "norm", "linalg_vector_norm"), _statistic),
    **dict.fromkeys(("_softmax", "_log_softmax", "_safe_softmax"), _softmax),
    **dict.fromkeys(("mm", "bmm", "addmm", "baddbmm"), _matmul),
    **dict.fromkeys(("zeros_like", "ones_like", "empty_like", "full_like"), _constant),
    **dict.fromkeys(("new_zeros", "new_ones", "new_empty", "new_full"), _constant),
    **dict.fromkeys(("rand_like", "randn_like", "randint_like"), _constant),
    "bernoulli": pointwise,
    "convolution": _convolution,
    "glu": _glu,
}
"""The rule for each operation, by its name."""

FAMILIES: Sequence[tuple[str, Rule]] = (
    *itertools.product(("max_pool", "avg_pool", "adaptive_", "_adaptive_"), (_over_places,)),
    *itertools.product(("upsample_", "_upsample_"), (_over_places,)),
    *itertools.product(("reflection_pad", "replication_pad"), (_over_places,)),
    *itertools.product(("native_batch_norm", "_native_batch_norm", "cudnn_batch"), (_normalise,)),
    *itertools.product(("native_layer_norm", "native_group_norm", "_fused_rms"), (_normalise,)),
    *itertools.product(("scaled_dot_product", "_scaled_dot_product"), (_attention,)),
)
"""The rule for each family of operations, by how their names begin."""
