"""Loose filters: weights that an operation computes with outside of any layer that can be cut.

A module may hold its weights itself, or call the function and not the layer, as multi-head
attention does with its last projection. They are not cut, and so must be listed.
"""

from collections.abc import Iterator, Sequence
from typing import Any

from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from trainables.costs.flops import does_work
from trainables.pruning.channels.flow import Flows
from trainables.pruning.channels.groups import LAYERS


class LooseFilters:
    """Follows weights that are on their way from a module to an operation."""

    def __init__(self, skeleton: nn.Module, flows: Flows) -> None:
        self._flows = flows
        self._widths: dict[str, int] = {}
        self._names: dict[int, frozenset[str]] = {}
        self._alive: list[Tensor] = []  # so that no two tensors share an id
        for name, weight in _weights(skeleton):
            self._widths.setdefault(name, weight.shape[0])
            self._names[id(weight)] = frozenset({name})

    def follow(self, func: Any, inputs: Sequence[Any], output: Any) -> None:
        """Notes the weights among `inputs` if `func` computes with them, else passes them on."""
        tensors = [leaf for leaf in inputs if isinstance(leaf, Tensor)]
        names = frozenset().union(*(self._names.get(id(t), frozenset()) for t in tensors))
        if not names:
            return
        if does_work(func):
            self._flows.trace.loose |= {name: self._widths[name] for name in names}
        elif not any((flow := self._flows.of(t)) and flow.node is not None for t in tensors):
            for leaf in tree_leaves(output):
                if isinstance(leaf, Tensor):
                    self._names[id(leaf)] = names
                    self._alive.append(leaf)


def _weights(skeleton: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Parameters of two dimensions or more, by the layer that holds them or else their own name."""
    for owner, module in skeleton.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            if sum(size > 1 for size in parameter.shape) > 1:
                full = f"{owner}.{name}" if owner else name
                yield (owner if isinstance(module, LAYERS) else full), parameter
