"""The pruned structure: which channels of which layers were kept, as plain data."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from trainables.errors import InputError
from trainables.pruning.channels.groups import Side


@dataclass(frozen=True, kw_only=True)
class Cut:
    """One side of one layer, and the channels that stay."""

    name: str
    """Qualified name of the module, or of a parameter that no standard module holds."""
    side: Side
    """Which of the layer's channels are meant."""
    width: int
    """Channels before the cut."""
    kept: tuple[int, ...]
    """Indices of those that stay, ascending."""

    def __post_init__(self) -> None:
        ascending = all(a < b for a, b in zip(self.kept, self.kept[1:], strict=False))
        if not (self.kept and ascending and self.kept[0] >= 0 and self.kept[-1] < self.width):
            raise InputError(
                f"{self.name} keeps the channels {self.kept}, which must be ascending indices in "
                f"[0, {self.width}) and at least one; the structure was not written by a pruning."
            )

    @property
    def removed(self) -> tuple[int, ...]:
        """The channels that go, ascending."""
        kept = set(self.kept)
        return tuple(index for index in range(self.width) if index not in kept)


@dataclass(frozen=True, kw_only=True)
class Resize:
    """An attribute in which a module counts channels, such as the sizes of a split."""

    name: str
    """Qualified name of the module."""
    attribute: str
    """Its attribute, an integer or a sequence of them."""
    value: int | tuple[int, ...]
    """Its value after the cuts."""


@dataclass(frozen=True, kw_only=True)
class Skipped:
    """Channels that the width rule names and that stayed all the same."""

    name: str
    """The layer that makes them."""
    channels: int
    """How many of its outputs."""
    reason: str
    """Why, as a sentence naming the layer that stands in the way."""


@dataclass(frozen=True, kw_only=True)
class PrunedStructure:
    """All that pruning decided; with the architecture and a state dict it gives the model back.

    No cuts means dense.
    """

    cuts: tuple[Cut, ...] = ()
    """Each side of each layer that lost channels, once."""
    resizes: tuple[Resize, ...] = ()
    """Attributes that follow the cuts."""
    skipped: tuple[Skipped, ...] = ()
    """Layers that stayed dense, in full or in part."""

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {
            "cuts": [
                {
                    "name": cut.name,
                    "side": str(cut.side),
                    "width": cut.width,
                    "kept": list(cut.kept),
                }
                for cut in self.cuts
            ],
            "resizes": [
                {
                    "name": resize.name,
                    "attribute": resize.attribute,
                    "value": resize.value if isinstance(resize.value, int) else list(resize.value),
                }
                for resize in self.resizes
            ],
            "skipped": [
                {"name": skip.name, "channels": skip.channels, "reason": skip.reason}
                for skip in self.skipped
            ],
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "PrunedStructure":
        """The structure whose `to_dict` gave `values`; anything else raises `InputError`."""
        try:
            cuts = tuple(
                Cut(
                    name=str(cut["name"]),
                    side=Side(cut["side"]),
                    width=int(cut["width"]),
                    kept=tuple(int(index) for index in cut["kept"]),
                )
                for cut in values["cuts"]
            )
            resizes = tuple(
                Resize(
                    name=str(resize["name"]),
                    attribute=str(resize["attribute"]),
                    value=_sizes(resize["value"]),
                )
                for resize in values["resizes"]
            )
            skipped = tuple(
                Skipped(
                    name=str(skip["name"]),
                    channels=int(skip["channels"]),
                    reason=str(skip["reason"]),
                )
                for skip in values["skipped"]
            )
        except (KeyError, TypeError, ValueError) as error:
            if isinstance(error, InputError):
                raise
            raise InputError(
                f"This is no pruned structure ({type(error).__name__}: {error}); "
                "give what PrunedStructure.to_dict returned."
            ) from error
        return cls(cuts=cuts, resizes=resizes, skipped=skipped)


def _sizes(value: Any) -> int | tuple[int, ...]:
    return tuple(int(size) for size in value) if isinstance(value, list) else int(value)
