"""What each operation of PyTorch does to the channels that enter it.

A rule takes the tracer, the operation's arguments and its output. Operations that PyTorch itself
tags as pointwise need no rule; those without any rule keep all channels that enter them.
"""

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from trainables.pruning.channels.ties import FIXED, NO_CHANNEL, along, collapsed, compact, spread

if TYPE_CHECKING:
    from trainables.pruning.channels.tracing import Flow, Tracer

Rule = Callable[["Tracer", Sequence[Any], Mapping[str, Any], Any], None]


def follow(
    tracer: "Tracer", func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], output: Any
) -> None:
    """Give `output`, which `func(*args, **kwargs)` returned, its labels."""
    name = func._schema.name.partition("::")[2].rstrip("_")
    rule = RULES.get(name) or next((r for start, r in PREFIXES if name.startswith(start)), None)
    if rule is not None:
        rule(tracer, args, kwargs, output)
    elif name in MOVES:
        _move(tracer, func, args, kwargs, output)
    elif torch.Tag.pointwise in func.tags or name in UNTAGGED:
        _pointwise(tracer, args, kwargs, output, product=name == "mul")
    else:
        _unknown(tracer, args, kwargs, output, name)


def _flows(tracer: "Tracer", *values: Any) -> list["Flow"]:
    return [flow for leaf in tree_leaves(values) if (flow := tracer.flow(leaf))]


def _unknown(
    tracer: "Tracer", args: Sequence[Any], kwargs: Mapping[str, Any], output: Any, name: str
) -> None:
    flows = _flows(tracer, args, dict(kwargs))
    for flow in flows:
        tracer.pin(flow.labels, f"uses {name}, through which channels are not followed")
    for tensor in tree_leaves(output):
        if isinstance(tensor, Tensor):
            tracer.note(tensor, torch.full((), FIXED).expand(tensor.shape), parents=flows)


def _pointwise(
    tracer: "Tracer",
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    output: Any,
    *,
    product: bool = False,
) -> None:
    if not isinstance(output, Tensor):
        _unknown(tracer, args, kwargs, output, "an operation with several results")
        return
    flows = _flows(tracer, args, dict(kwargs))
    labels = None
    for flow in flows:
        labels = flow.labels if labels is None else _meet(tracer, labels, flow.labels)
    assert labels is not None  # follow is called where something flows
    makers = tracer.note_gate(flows) if product and len(flows) == 2 else None
    tracer.note(output, compact(labels.expand(output.shape)), parents=flows, makers=makers)


def _meet(tracer: "Tracer", a: Tensor, b: Tensor) -> Tensor:
    """The labels where elements labelled `a` and `b` meet, which are tied."""
    rank = max(a.dim(), b.dim())
    a, b = (t.reshape((1,) * (rank - t.dim()) + tuple(t.shape)) for t in (a, b))
    for dim in range(rank):
        for this, other in ((a, b), (b, a)):
            if this.shape[dim] == 1 and other.shape[dim] > 1 and tracer.ties.varies(other, dim):
                # one channel for many, as in attention over places: it cannot go with each
                tracer.pin(this, "applies one channel to many")
                if this is a:
                    a = torch.full((), NO_CHANNEL).expand(a.shape)
                else:
                    b = torch.full((), NO_CHANNEL).expand(b.shape)
    one, other = collapsed(a), collapsed(b)
    tracer.pin(torch.where(one == FIXED, other, NO_CHANNEL), "joins them with channels that stay")
    tracer.pin(torch.where(other == FIXED, one, NO_CHANNEL), "joins them with channels that stay")
    tracer.ties.tie(
        torch.where(one == FIXED, NO_CHANNEL, one).expand(a.shape),
        torch.where(other == FIXED, NO_CHANNEL, other).expand(b.shape),
    )
    rest = torch.where(other > FIXED, other, torch.maximum(one, other))
    return torch.where(one > FIXED, one, rest).expand(torch.broadcast_shapes(a.shape, b.shape))


def _move(
    tracer: "Tracer", func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], output: Any
) -> None:
    """Elements only change places: so do their labels, by the operation itself."""
    flows = _flows(tracer, args[0])
    moved = func(flows[0].labels, *args[1:], **kwargs)
    if isinstance(output, Tensor):
        tracer.note(output, compact(moved), parents=flows)
        return
    for tensor, labels in zip(output, moved, strict=True):
        tracer.note(tensor, compact(labels), parents=flows)


def _view(tracer: "Tracer", args: Sequence[Any], _kwargs: Mapping[str, Any], output: Any) -> None:
    flow = tracer.flow(args[0])
    assert flow is not None
    asked = args[1]
    for old, new in _segments(flow.labels.shape, output.shape):
        _merge(tracer, flow.labels, [dim for dim in old if tracer.ties.varies(flow.labels, dim)])
        if len(old) != 1 or not tracer.ties.varies(flow.labels, old[0]):
            continue
        wide = [dim for dim in new if output.shape[dim] > 1]
        labels = along(flow.labels, old[0])
        if len(wide) == 1:
            fixed = [torch.full((size,), FIXED) for size in output.shape]
            counted = [labels if dim in wide else fixed[dim] for dim in range(output.dim())]
            tracer.declare(list(output.shape), counted)
            continue
        rows = labels.view(-1, output.shape[wide[-1]])
        if asked[wide[0]] == -1 and len(wide) == 2:
            # the number of blocks gives way, not their size
            tracer.ties.tie(rows, rows[:, :1].expand(rows.shape))
        else:
            tracer.ask_for_blocks(len(rows), labels)
            tracer.declare([rows.shape[1]], [rows[0]])
    tracer.note(output, compact(flow.labels.reshape(output.shape)), parents=(flow,))


def _merge(tracer: "Tracer", labels: Tensor, dims: Sequence[int]) -> None:
    """`dims` become one: channels keep their order if the last gives way, or else go row by row."""
    for other in set(range(labels.dim())).difference(dims):
        labels = labels.narrow(other, 0, 1)
    flat = labels.flatten()
    if len(dims) > 1 and not bool((flat[1:] > flat[:-1]).all()):
        for dim in dims[1:]:
            tracer.ties.tie(labels, labels.narrow(dim, 0, 1).expand(labels.shape))


def _shuffle(
    tracer: "Tracer", args: Sequence[Any], _kwargs: Mapping[str, Any], output: Any
) -> None:
    """Channels of each group in turn, so that groups must keep the same."""
    flow = tracer.flow(args[0])
    assert flow is not None
    rows = along(flow.labels, 1).view(args[1], -1)
    tracer.ties.tie(rows, rows[:1].expand(rows.shape))
    labels = spread(rows.T.flatten(), 1, output.shape)
    tracer.note(output, labels, parents=(flow,))


def _segments(old: Sequence[int], new: Sequence[int]) -> list[tuple[list[int], list[int]]]:
    """The least runs of dimensions of `old` and of `new` that hold equally many elements."""
    segments, i, j = [], 0, 0
    while i < len(old) and j < len(new):
        ours, theirs, left, right = [i], [j], old[i], new[j]
        while left != right:
            if left < right:
                i += 1
                ours.append(i)
                left *= old[i]
            else:
                j += 1
                theirs.append(j)
                right *= new[j]
        i, j = i + 1, j + 1
        segments.append((ours, theirs))
    return segments


def _split(tracer: "Tracer", args: Sequence[Any], kwargs: Mapping[str, Any], output: Any) -> None:
    flow = tracer.flow(args[0])
    assert flow is not None
    size = args[1]
    dim = args[2] if len(args) > 2 else kwargs.get("dim", 0)
    sizes = [piece.shape[dim] for piece in output]
    pieces = torch.split(flow.labels, sizes, dim)
    if len(sizes) > 1 and tracer.ties.varies(flow.labels, dim):
        whole = along(flow.labels, dim)
        parts = list(torch.split(whole, sizes))
        if isinstance(size, int):  # by chunk, or by a size that must fit every piece
            if len(set(sizes)) > 1:
                tracer.pin(whole, f"splits {len(whole)} channels into uneven pieces of {size}")
            tracer.ask_for_blocks(len(sizes), whole)
            tracer.declare([len(whole), size], [whole, parts[0]])
        else:
            tracer.declare(sizes, parts)
    for tensor, labels in zip(output, pieces, strict=True):
        tracer.note(tensor, compact(labels), parents=(flow,))


def _glu(tracer: "Tracer", args: Sequence[Any], kwargs: Mapping[str, Any], output: Any) -> None:
    """One half of the channels scales the other."""
    flow = tracer.flow(args[0])
    assert flow is not None
    dim = args[1] if len(args) > 1 else kwargs.get("dim", -1)
    if tracer.ties.varies(flow.labels, dim):
        tracer.ask_for_blocks(2, along(flow.labels, dim))
    labels = _meet(tracer, *flow.labels.chunk(2, dim))
    tracer.note(output, compact(labels.expand(output.shape)), parents=(flow,))


def _slice(tracer: "Tracer", args: Sequence[Any], _kwargs: Mapping[str, Any], output: Any) -> None:
    flow = tracer.flow(args[0])
    assert flow is not None
    given = [*args[1:], *[0, None, None, 1][len(args) - 1 :]]
    dim, start, end, step = given
    labels = torch.ops.aten.slice.Tensor(flow.labels, dim, start, end, step)
    if output.shape[dim] < flow.labels.shape[dim] and tracer.ties.varies(flow.labels, dim):
        whole = along(flow.labels, dim)
        width = len(whole)
        start = min(max((start or 0) + (width if (start or 0) < 0 else 0), 0), width)
        end = start + output.shape[dim] * step
        marks = [mark for mark in (start, end) if 0 < mark < width]
        if step != 1:
            tracer.pin(whole, "takes every other channel")
        elif (
            not tracer.declare(
                [*marks, end - start], [*(whole[:mark] for mark in marks), whole[start:end]]
            )
            and all(mark % (end - start) == 0 for mark in marks)
            and width % (end - start) == 0
        ):
            tracer.ask_for_blocks(width // (end - start), whole)
    tracer.note(output, compact(labels), parents=(flow,))


def _cat(tracer: "Tracer", args: Sequence[Any], kwargs: Mapping[str, Any], output: Any) -> None:
    dim = args[1] if len(args) > 1 else kwargs.get("dim", 0)
    _join(tracer, args[0], [tensor.shape for tensor in args[0]], output, dim=dim)


def _stack(tracer: "Tracer", args: Sequence[Any], kwargs: Mapping[str, Any], output: Any) -> None:
    dim = (args[1] if len(args) > 1 else kwargs.get("dim", 0)) % output.dim()
    shape = (*output.shape[:dim], 1, *output.shape[dim + 1 :])
    _join(tracer, args[0], [shape] * len(args[0]), output, dim=dim)


def _join(
    tracer: "Tracer",
    tensors: Sequence[Tensor],
    shapes: Sequence[Sequence[int]],
    output: Tensor,
    *,
    dim: int,
) -> None:
    """Tensors one after the other along `dim`, each in the shape it has there."""
    parts, parents = [], []
    for tensor, shape in zip(tensors, shapes, strict=True):
        flow = tracer.flow(tensor)
        if flow is None:
            parts.append(torch.full((), NO_CHANNEL).expand(shape))
        else:
            parts.append(flow.labels.reshape(shape))
            parents.append(flow)
    for other in range(output.dim()):
        if other != dim % output.dim() and all(part.stride(other) == 0 for part in parts):
            parts = [part.narrow(other, 0, 1) for part in parts]
    joined = torch.cat(parts, dim)
    if tracer.ties.varies(joined, dim):  # a constant beside channels keeps its size
        joined = torch.where(joined == NO_CHANNEL, FIXED, joined)
    tracer.note(output, compact(joined.expand(output.shape)), parents=parents)


def _pad(tracer: "Tracer", args: Sequence[Any], _kwargs: Mapping[str, Any], output: Any) -> None:
    flow = tracer.flow(args[0])
    assert flow is not None
    labels = flow.labels
    for place, dim in enumerate(range(labels.dim() - 1, labels.dim() - 1 - len(args[1]) // 2, -1)):
        before, after = args[1][2 * place : 2 * place + 2]
        shape = list(labels.shape)
        shape[dim] += before + after
        if not tracer.ties.varies(labels, dim):
            labels = labels.narrow(dim, 0, 1).expand(shape)
        elif min(before, after) < 0:
            tracer.pin(labels, "cuts channels off")
            labels = torch.full((), FIXED).expand(shape)
        else:  # so many zeros, however many channels are left
            padding = [0] * (2 * labels.dim())
            padding[2 * place : 2 * place + 2] = before, after
            labels = torch.nn.functional.pad(labels, padding, value=FIXED)
    tracer.note(output, compact(labels), parents=(flow,))


def _places(tracer: "Tracer", args: Sequence[Any], kwargs: Mapping[str, Any], output: Any) -> None:
    """Pooling, resizing and padding of maps, whose channels lie in dimension 1."""
    flow = tracer.flow(args[0])
    first = output if isinstance(output, Tensor) else output[0]
    assert flow is not None
    if any(tracer.ties.varies(flow.labels, d) for d in range(2, first.dim())) or first.dim() < 3:
        _unknown(tracer, args, kwargs, output, "pooling along channels")
        return
    labels = spread(along(flow.labels, 1), 1, first.shape)
    tracer.note(first, labels, parents=(flow,))


def _spread_of(
    tracer: "Tracer", args: Sequence[Any], kwargs: Mapping[str, Any], output: Any
) -> None:
    """Variances over channels, of all or in groups as norms compute them."""
    _reduce(tracer, args, kwargs, output, branches=False)


def _reduce(
    tracer: "Tracer",
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    output: Any,
    *,
    branches: bool = True,
) -> None:
    """Sums and means over places pass channels on; over channels they end them.

    Over one of two dimensions with channels they are taken for sums over `branches`.
    """
    flow = tracer.flow(args[0])
    assert flow is not None
    labels = flow.labels
    given = next((a for a in args[1:] if isinstance(a, list | tuple)), kwargs.get("dim"))
    if given is None and len(args) > 1 and type(args[1]) is int:
        given = [args[1]]
    dims = [d % labels.dim() for d in given] if given else list(range(labels.dim()))
    across = [d for d in dims if tracer.ties.varies(labels, d)]
    rest = [d for d in range(labels.dim()) if d not in dims and tracer.ties.varies(labels, d)]
    if across and rest and branches:  # as in split attention
        first = labels
        for d in across:
            first = first.narrow(d, 0, 1)
        tracer.ties.tie(labels, first.expand(labels.shape))
    elif across and not tracer.mix():
        tracer.pin(labels, "computes a statistic over channels beside layers of its own")
    for d in dims:
        labels = labels.narrow(d, 0, 1)
    if across and not (rest and branches):
        labels = torch.full((), NO_CHANNEL).expand(labels.shape)
    first_output = output if isinstance(output, Tensor) else output[0]
    for tensor in tree_leaves(output):
        if isinstance(tensor, Tensor) and tensor.shape == first_output.shape:
            tracer.note(tensor, compact(labels.reshape(tensor.shape)), parents=(flow,))


def _softmax(
    tracer: "Tracer", args: Sequence[Any], _kwargs: Mapping[str, Any], output: Any
) -> None:
    """What competes with one another stays or goes together."""
    flow = tracer.flow(args[0])
    assert flow is not None
    if tracer.ties.varies(flow.labels, args[1]):
        first = flow.labels.narrow(args[1], 0, 1)
        tracer.ties.tie(flow.labels, first.expand(flow.labels.shape))
    tracer.note(output, flow.labels, parents=(flow,))


def _matmul(tracer: "Tracer", args: Sequence[Any], kwargs: Mapping[str, Any], output: Any) -> None:
    left, right = args[-2:]
    flows = _flows(tracer, args, dict(kwargs))
    a, b = (
        flow.labels if flow else torch.full((), NO_CHANNEL).expand(tensor.shape)
        for tensor, flow in ((t, tracer.flow(t)) for t in (left, right))
    )
    varies = tracer.ties.varies
    rows, columns = varies(a, -2), varies(b, -1)
    a_inner, b_inner = varies(a, -1), varies(b, -2)
    batch = any(varies(t, dim) for t in (a, b) for dim in range(t.dim() - 2))
    simple = not (rows and columns) and not (a_inner and (rows or columns or batch))
    if len(args) > 2 or not simple or a_inner != b_inner:
        for flow in flows:
            tracer.pin(flow.labels, "multiplies matrices in which channels meet one another")
        tracer.note(output, torch.full((), FIXED).expand(output.shape), parents=flows)
        return
    if a_inner:
        tracer.ties.tie(a.narrow(-2, 0, 1).transpose(-1, -2), b.narrow(-1, 0, 1))
        labels = torch.full((), NO_CHANNEL).expand(output.shape)
    else:
        labels = _meet(tracer, a.narrow(-1, 0, 1), b.narrow(-2, 0, 1)).expand(output.shape)
    tracer.note(output, compact(labels), parents=flows)


def _attention(
    tracer: "Tracer", args: Sequence[Any], kwargs: Mapping[str, Any], output: Any
) -> None:
    """Fused attention, whose scale depends on the width of queries and keys."""
    flows = _flows(tracer, args, dict(kwargs))
    for tensor in args[:2]:
        if flow := tracer.flow(tensor):
            tracer.pin(flow.labels, "scales attention by the width of its heads")
    first = output if isinstance(output, Tensor) else output[0]
    value = tracer.flow(args[2])
    labels = (
        value.labels.narrow(-2, 0, 1).expand(first.shape)
        if value
        else torch.full((), NO_CHANNEL).expand(first.shape)
    )
    tracer.note(first, labels, parents=flows)


def _convolution(
    tracer: "Tracer", args: Sequence[Any], kwargs: Mapping[str, Any], output: Any
) -> None:
    """A convolution outside any layer: a filter for each channel, or an end to them."""
    flow, weight, groups = tracer.flow(args[0]), args[1], args[8]
    channels = args[0].shape[1]
    depthwise = groups == channels == weight.shape[0] and not args[6]
    if (
        flow is None
        or not depthwise
        or any(tracer.ties.varies(flow.labels, d) for d in range(2, output.dim()))
    ):
        _unknown(tracer, args, kwargs, output, "a convolution outside any layer")
        return
    labels = along(flow.labels, 1)
    if filters := tracer.flow(weight):
        tracer.ties.tie(filters.labels, spread(labels, 0, weight.shape))
    tracer.declare([channels], [labels])
    tracer.note(output, spread(labels, 1, output.shape), parents=(flow,))


def _normalise(
    tracer: "Tracer", args: Sequence[Any], kwargs: Mapping[str, Any], output: Any
) -> None:
    """A norm outside any layer: batch norm by channel, group and layer norm over channels."""
    flow = tracer.flow(args[0])
    assert flow is not None
    first = output if isinstance(output, Tensor) else output[0]
    dims = [d for d in range(flow.labels.dim()) if tracer.ties.varies(flow.labels, d)]
    if len(dims) > 1 or not (dims == [] or tracer.mix()):
        _unknown(tracer, args, kwargs, output, "a norm over channels")
        return
    for tensor in args[1:]:
        bare = tracer.flow(tensor)
        if bare and dims and bare.labels.numel() == flow.labels.shape[dims[0]]:
            tracer.ties.tie(bare.labels.flatten(), along(flow.labels, dims[0]))
        elif bare:
            tracer.pin(bare.labels, "normalises with it")
    tracer.note(first, flow.labels, parents=(flow,))


def _same(tracer: "Tracer", args: Sequence[Any], _kwargs: Mapping[str, Any], output: Any) -> None:
    if flow := tracer.flow(args[0]):
        tracer.note(output, flow.labels, parents=(flow,))


def _strided(tracer: "Tracer", args: Sequence[Any], kwargs: Mapping[str, Any], output: Any) -> None:
    """Another order in memory of the same elements, as pooling to one place leaves them."""
    flow = tracer.flow(args[0])
    if flow is None or output.shape != flow.labels.shape:
        _unknown(tracer, args, kwargs, output, "as_strided")
    else:
        tracer.note(output, flow.labels, parents=(flow,))


def _copy(tracer: "Tracer", args: Sequence[Any], kwargs: Mapping[str, Any], output: Any) -> None:
    """Writing into a tensor, often into a part of one, whose whole is not followed."""
    flows = _flows(tracer, args)
    for flow in flows:
        tracer.pin(flow.labels, "writes channels into another tensor")
    tracer.note(output, torch.full((), FIXED).expand(output.shape), parents=flows)


def _constant(
    _tracer: "Tracer", _args: Sequence[Any], _kwargs: Mapping[str, Any], _output: Any
) -> None:
    """The result has the shape of the argument and nothing else of it."""


UNTAGGED = frozenset({"hardsigmoid", "hardswish", "hardtanh", "mish", "prelu", "_prelu_kernel"})
"""Pointwise operations that PyTorch does not tag as such."""

MOVES = frozenset(
    {
        "diagonal",
        "expand",
        "flip",
        "movedim",
        "permute",
        "pixel_shuffle",
        "pixel_unshuffle",
        "repeat",
        "roll",
        "select",
        "squeeze",
        "t",
        "transpose",
        "unbind",
        "unfold",
        "unsqueeze",
    }
)
"""Operations that move elements of one tensor and leave them as they are."""

RULES: Mapping[str, Rule] = {
    **dict.fromkeys(("view", "_unsafe_view", "reshape", "_reshape_alias"), _view),
    **dict.fromkeys(("split", "split_with_sizes"), _split),
    **dict.fromkeys(("clone", "contiguous", "detach", "alias", "_to_copy", "lift_fresh"), _same),
    **dict.fromkeys(("native_dropout",), _same),
    **dict.fromkeys(("sum", "mean", "amax", "amin", "max", "min", "prod", "logsumexp"), _reduce),
    **dict.fromkeys(("std", "var", "var_mean", "norm", "linalg_vector_norm"), _spread_of),
    **dict.fromkeys(("_softmax", "_log_softmax", "_safe_softmax"), _softmax),
    **dict.fromkeys(("mm", "bmm", "addmm", "baddbmm"), _matmul),
    **dict.fromkeys(("zeros_like", "ones_like", "empty_like", "full_like"), _constant),
    **dict.fromkeys(("new_zeros", "new_ones", "new_empty", "new_full"), _constant),
    "glu": _glu,
    "slice": _slice,
    "cat": _cat,
    "stack": _stack,
    "channel_shuffle": _shuffle,
    "native_channel_shuffle": _shuffle,
    "constant_pad_nd": _pad,
    "convolution": _convolution,
    "as_strided": _strided,
    "copy": _copy,
}
"""By the name of the operation, without the underscore of its in-place form."""

PREFIXES: Sequence[tuple[str, Rule]] = (
    *itertools.product(
        ("max_pool", "avg_pool", "adaptive_", "_adaptive_", "upsample_", "_upsample_"), (_places,)
    ),
    *itertools.product(("reflection_pad", "replication_pad"), (_places,)),
    *itertools.product(("native_batch_norm", "_native_batch_norm", "cudnn_batch"), (_normalise,)),
    *itertools.product(("native_layer_norm", "native_group_norm", "_fused_rms"), (_normalise,)),
    *itertools.product(("scaled_dot_product", "_scaled_dot_product"), (_attention,)),
)
"""By how the name begins."""
