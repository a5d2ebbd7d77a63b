"""The backbone as the config names it: plain values that travel to the nodes."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic import ConfigDict, PositiveFloat

from trainables.local_path import LocalPath


@dataclass(frozen=True, kw_only=True)
class BackboneSource:
    """The pretrained network, as the config's `backbone` section names it; travels to the nodes."""

    __pydantic_config__ = ConfigDict(extra="forbid", allow_inf_nan=False)

    model: str
    """A timm model name, or `module:factory` for a callable taking `num_classes` and `args`."""
    weights: LocalPath | None = None
    """`hub` (timm's), or a path to a safetensors or state-dict file; None: random weights."""
    args: Mapping[str, Any] = field(default_factory=dict)
    """Further keyword arguments of the model's constructor."""
    mean: tuple[float, float, float] | None = None
    """Channel means that inputs are normalised by, 0-1; None: the model's own, else ImageNet's."""
    std: tuple[PositiveFloat, PositiveFloat, PositiveFloat] | None = None
    """Channel standard deviations that inputs are normalised by, in the same way."""

    def __post_init__(self) -> None:
        for name in ("mean", "std"):  # JSON has no tuples
            channels = getattr(self, name)
            object.__setattr__(self, name, None if channels is None else tuple(channels))
