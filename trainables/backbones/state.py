"""State dicts: tensors by name, and the versions that the modules wrote them in.

A module may store its tensors otherwise in a later version and tells by the number which it reads.
A plain dict, like a safetensors file, has no numbers; its tensors are then of the version that the
model itself would write.
"""

import argparse
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from timm.models import load_state_dict
from torch import Tensor, nn

Weights = Mapping[str, Tensor]
"""Tensors by name; where `versions_of` finds any, also the versions of their modules."""
_WRAPPERS = ("_orig_mod", "module")  # of compiled and parallel models


def read_weights(path: Path) -> Weights:
    """The state dict in a safetensors or state-dict file, alone or nested, with its versions.

    Raises whatever the two formats' readers raise.
    """
    state = load_state_dict(str(path))
    tensors = {name: value for name, value in state.items() if isinstance(value, Tensor)}
    return with_versions(tensors, _versions_in(path))


def with_versions(weights: Weights, versions: Mapping[str, Any] | None) -> Weights:
    """The same tensors, with the versions of their modules by name."""
    state = _VersionedDict(weights)
    if versions:
        state._metadata = dict(versions)
    return state


def versions_of(weights: Weights) -> Mapping[str, Any] | None:
    """The versions that `weights` carry, if any."""
    return getattr(weights, "_metadata", None)


def load_weights_into(model: nn.Module, weights: Weights, *, strict: bool = True) -> None:
    """`model.load_state_dict(weights)`, in the versions that they carry or else the model's own."""
    own = versions_of(model.state_dict())
    model.load_state_dict(with_versions(weights, versions_of(weights) or own), strict=strict)


class _VersionedDict(OrderedDict[str, Tensor]):
    """A state dict that travels between processes with its versions."""

    _metadata: dict[str, Any]


def _versions_in(path: Path) -> Mapping[str, Any] | None:
    if path.suffix == ".safetensors":
        return None
    # on the meta device no tensor is read a second time
    with torch.serialization.safe_globals([argparse.Namespace]):
        checkpoint = torch.load(path, map_location="meta", weights_only=True)
    for key in ("state_dict_ema", "model_ema", "state_dict", "model"):
        if isinstance(nested := checkpoint.get(key), Mapping):
            checkpoint = nested
            break
    versions = versions_of(checkpoint)
    return versions and {_unwrapped(name): version for name, version in versions.items()}


def _unwrapped(name: str) -> str:
    parts = name.split(".")
    while parts and parts[0] in _WRAPPERS:
        parts.pop(0)
    return ".".join(parts)
