"""Finds the layers that make a model's logits, by following a forward pass on the meta device."""

import functools
from collections.abc import Hashable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from trainables.backbones.skeleton import float_dtype, meta_copy, structure_key
from trainables.remembered import Remembered

_RESOLUTIONS = (64, 32, 224, 128, 96, 256, 299, 384, 28, 16)
"""Pixels at which a forward pass is tried; some models want a size of their own."""


def makers_of_logits(model: nn.Module) -> frozenset[str] | None:
    """Names of the weighted layers that the outputs in eval mode come from, with none in between.

    `None` where the model does not give one tensor for RGB images of any usual size. Found once per
    process for equal structures.
    """
    key: Hashable = structure_key(model, resolution=0)
    return _found.get(key, lambda: _find(model))


_found = Remembered[frozenset[str] | None](size=32)


def _find(model: nn.Module) -> frozenset[str] | None:
    try:
        skeleton = meta_copy(model).eval()
    except Exception:  # whatever a user's attributes may raise when copied
        return None
    for resolution in _RESOLUTIONS:
        images = torch.empty(
            (2, 3, resolution, resolution), dtype=float_dtype(model), device="meta"
        )
        makers = _Makers()
        hooks = list(makers.attach(skeleton))
        try:
            with torch.no_grad(), makers:
                logits = skeleton(images)
        except Exception:  # whatever a user's forward may raise
            continue
        finally:
            for hook in hooks:
                hook.remove()
        return makers.of(logits) if isinstance(logits, Tensor) else None
    return None


class _Makers(TorchDispatchMode):
    """The weighted layers that each tensor comes from, with none in between."""

    def __init__(self) -> None:
        TorchDispatchMode.__init__(self)
        self._makers: dict[int, frozenset[str]] = {}
        self._alive: list[Tensor] = []  # so that no two tensors share an id

    def of(self, *values: Any) -> frozenset[str]:
        known = (
            self._makers.get(id(leaf), frozenset())
            for leaf in tree_leaves(values)
            if isinstance(leaf, Tensor)
        )
        return frozenset().union(*known)

    def attach(self, skeleton: nn.Module) -> Iterator[Any]:
        """Hooks on every weighted layer; remove them afterwards."""
        for name, module in skeleton.named_modules():
            if isinstance(module, nn.Linear | nn.modules.conv._ConvNd):
                yield module.register_forward_hook(functools.partial(self._leave, name))

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        named = dict(kwargs or {})
        output = func(*args, **named)
        self._note(output, self.of(args, named))
        return output

    def _leave(self, name: str, _module: nn.Module, _inputs: Any, output: Any) -> None:
        self._note(output, frozenset({name}))

    def _note(self, output: Any, makers: frozenset[str]) -> None:
        for leaf in tree_leaves(output):
            if isinstance(leaf, Tensor):
                self._makers[id(leaf)] = makers
                self._alive.append(leaf)
