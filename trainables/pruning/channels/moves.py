"""Rules for operations that move elements: their labels move alike.

Where channels are cut apart, joined or counted on the way, the rule notes which must keep equally
many and which attributes of the module count them.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from trainables.pruning.channels.flow import Call, Flow, Flows, Rule
from trainables.pruning.channels.ties import FIXED, NO_CHANNEL, along, compact, spread


def _move(flows: Flows, call: Call) -> None:
    """The operation itself moves the labels."""
    parents = flows.entering(call.args[0])
    moved = call.func(parents[0].labels, *call.args[1:], **call.kwargs)
    if isinstance(call.output, Tensor):
        flows.note(call.output, compact(moved), parents=parents)
        return
    for tensor, labels in zip(call.output, moved, strict=True):
        flows.note(tensor, compact(labels), parents=parents)


def _same(flows: Flows, call: Call) -> None:
    """Elements stay where they are."""
    if flow := flows.of(call.args[0]):
        flows.note(call.first_output, flow.labels, parents=(flow,))


def _strided(flows: Flows, call: Call) -> None:
    """Another order in memory of the same elements, as pooling to one place leaves them."""
    flow = flows.of(call.args[0])
    if flow is None or call.output.shape != flow.labels.shape:
        flows.stop(call, "as_strided")
    else:
        flows.note(call.output, flow.labels, parents=(flow,))


def _copy(flows: Flows, call: Call) -> None:
    """Writing into a tensor, often into a part of one, whose whole is not followed."""
    parents = flows.entering(call.args)
    for flow in parents:
        flows.pin(flow.labels, "writes channels into another tensor")
    flows.note(call.output, torch.full((), FIXED).expand(call.output.shape), parents=parents)


def _view(flows: Flows, call: Call) -> None:
    flow = flows.first(call)
    shape = call.output.shape
    for old, new in _segments(flow.labels.shape, shape):
        varying = [dim for dim in old if flows.ties.varies(flow.labels, dim)]
        _merge(flows, flow.labels, varying)
        if len(old) == 1 and varying:
            _divide(flows, call, along(flow.labels, old[0]), new)
    flows.note(call.output, compact(flow.labels.reshape(shape)), parents=(flow,))


def _merge(flows: Flows, labels: Tensor, dims: Sequence[int]) -> None:
    """`dims` become one: channels keep their order if the last gives way, or else go row by row."""
    for other in set(range(labels.dim())).difference(dims):
        labels = labels.narrow(other, 0, 1)
    flat = labels.flatten()
    if len(dims) > 1 and not bool((flat[1:] > flat[:-1]).all()):
        for dim in dims[1:]:
            flows.ties.tie(labels, labels.narrow(dim, 0, 1).expand(labels.shape))


def _divide(flows: Flows, call: Call, labels: Tensor, new: Sequence[int]) -> None:
    """One dimension of channels, `labels`, becomes the `new` dimensions of the view's output."""
    shape = call.output.shape
    wide = [dim for dim in new if shape[dim] > 1]
    if len(wide) == 1:
        fixed = [torch.full((size,), FIXED) for size in shape]
        counted = [labels if dim in wide else fixed[dim] for dim in range(len(shape))]
        flows.declare(list(shape), counted)
        return
    rows = labels.view(-1, shape[wide[-1]])
    if call.args[1][wide[0]] == -1 and len(wide) == 2:
        # the number of blocks gives way, not their size
        flows.ties.tie(rows, rows[:, :1].expand(rows.shape))
    else:
        flows.ask_for_blocks(len(rows), labels)
        flows.declare([rows.shape[1]], [rows[0]])


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


def _shuffle(flows: Flows, call: Call) -> None:
    """Channels of each group in turn, so that groups must keep the same."""
    flow = flows.first(call)
    rows = along(flow.labels, 1).view(call.args[1], -1)
    flows.ties.tie(rows, rows[:1].expand(rows.shape))
    labels = spread(rows.T.flatten(), 1, call.output.shape)
    flows.note(call.output, labels, parents=(flow,))


def _split(flows: Flows, call: Call) -> None:
    flow = flows.first(call)
    size, dim = call.args[1], call.argument(2, "dim", 0)
    sizes = [piece.shape[dim] for piece in call.output]
    pieces = torch.split(flow.labels, sizes, dim)
    if len(sizes) > 1 and flows.ties.varies(flow.labels, dim):
        whole = along(flow.labels, dim)
        parts = list(torch.split(whole, sizes))
        if isinstance(size, int):  # by chunk, or by a size that must fit every piece
            if len(set(sizes)) > 1:
                flows.pin(whole, f"splits {len(whole)} channels into uneven pieces of {size}")
            flows.ask_for_blocks(len(sizes), whole)
            flows.declare([len(whole), size], [whole, parts[0]])
        else:
            flows.declare(sizes, parts)
    for tensor, labels in zip(call.output, pieces, strict=True):
        flows.note(tensor, compact(labels), parents=(flow,))


def _slice(flows: Flows, call: Call) -> None:
    flow = flows.first(call)
    given: list[Any] = list(call.args[1:])
    dim, start, end, step = given + [0, None, None, 1][len(given) :]
    labels = torch.ops.aten.slice.Tensor(flow.labels, dim, start, end, step)
    size = call.output.shape[dim]
    if size < flow.labels.shape[dim] and flows.ties.varies(flow.labels, dim):
        _take(flows, along(flow.labels, dim), start=start or 0, size=size, step=step)
    flows.note(call.output, compact(labels), parents=(flow,))


def _take(flows: Flows, whole: Tensor, *, start: int, size: int, step: int) -> None:
    """`size` of the channels `whole` are taken from `start` on."""
    width = len(whole)
    start = min(max(start + (width if start < 0 else 0), 0), width)
    end = start + size * step
    if step != 1:
        flows.pin(whole, "takes every other channel")
        return
    marks = [mark for mark in (start, end) if 0 < mark < width]
    parts = [*(whole[:mark] for mark in marks), whole[start:end]]
    if flows.declare([*marks, size], parts):
        return
    if width % size == 0 and all(mark % size == 0 for mark in marks):
        flows.ask_for_blocks(width // size, whole)


def _cat(flows: Flows, call: Call) -> None:
    tensors = call.args[0]
    _join(flows, call, [tensor.shape for tensor in tensors], dim=call.argument(1, "dim", 0))


def _stack(flows: Flows, call: Call) -> None:
    dim = call.argument(1, "dim", 0) % call.output.dim()
    shape = (*call.output.shape[:dim], 1, *call.output.shape[dim + 1 :])
    _join(flows, call, [shape] * len(call.args[0]), dim=dim)


def _join(flows: Flows, call: Call, shapes: Sequence[Sequence[int]], *, dim: int) -> None:
    """Tensors one after the other along `dim`, each in the shape it has there."""
    parts: list[Tensor] = []
    parents: list[Flow] = []
    for tensor, shape in zip(call.args[0], shapes, strict=True):
        flow = flows.of(tensor)
        if flow is None:
            parts.append(torch.full((), NO_CHANNEL).expand(tuple(shape)))
        else:
            parts.append(flow.labels.reshape(tuple(shape)))
            parents.append(flow)
    output = call.output
    for other in range(output.dim()):
        if other != dim % output.dim() and all(part.stride(other) == 0 for part in parts):
            parts = [part.narrow(other, 0, 1) for part in parts]
    joined = torch.cat(parts, dim)
    if flows.ties.varies(joined, dim):  # a constant next to channels keeps its size
        joined = torch.where(joined == NO_CHANNEL, FIXED, joined)
    flows.note(output, compact(joined.expand(output.shape)), parents=parents)


def _pad(flows: Flows, call: Call) -> None:
    flow = flows.first(call)
    labels, amounts = flow.labels, call.args[1]
    for place in range(len(amounts) // 2):  # from the last dimension on
        dim = flow.labels.dim() - 1 - place
        before, after = amounts[2 * place : 2 * place + 2]
        labels = _padded(flows, labels, dim=dim, before=before, after=after)
    flows.note(call.output, compact(labels), parents=(flow,))


def _padded(flows: Flows, labels: Tensor, *, dim: int, before: int, after: int) -> Tensor:
    shape = list(labels.shape)
    shape[dim] += before + after
    if not flows.ties.varies(labels, dim):
        return labels.narrow(dim, 0, 1).expand(shape)
    if min(before, after) < 0:
        flows.pin(labels, "cuts channels off")
        return torch.full((), FIXED).expand(shape)
    # so many zeros, however many channels are left
    place = 2 * (labels.dim() - 1 - dim)
    padding = [0] * (2 * labels.dim())
    padding[place : place + 2] = before, after
    return torch.nn.functional.pad(labels, padding, value=FIXED)


RULES: Mapping[str, Rule] = {
    **dict.fromkeys(("diagonal", "expand", "flip", "movedim", "permute", "repeat", "roll"), _move),
    **dict.fromkeys(("pixel_shuffle", "pixel_unshuffle", "select", "squeeze"), _move),
    **dict.fromkeys(("t", "transpose", "unbind", "unfold", "unsqueeze"), _move),
    **dict.fromkeys(("clone", "contiguous", "detach", "alias", "_to_copy", "lift_fresh"), _same),
    **dict.fromkeys(("view", "_unsafe_view", "reshape", "_reshape_alias"), _view),
    **dict.fromkeys(("split", "split_with_sizes"), _split),
    **dict.fromkeys(("channel_shuffle", "native_channel_shuffle"), _shuffle),
    "as_strided": _strided,
    "cat": _cat,
    "constant_pad_nd": _pad,
    "copy": _copy,
    "native_dropout": _same,
    "rrelu_with_noise": _same,
    "slice": _slice,
    "stack": _stack,
}
"""The rule for each operation, by its name."""
