"""The pruned structure: which channels of which layers were kept, as plain data."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from trainables.errors import InputError
from trainables.pruning.groups import Side


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
class PrunedStructure:
    """All that pruning decided; with the architecture and a state dict it gives the model back.

    No cuts means dense.
    """

    cuts: tuple[Cut, ...] = ()
    """Each side of each layer that lost channels, once."""

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
            ]
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
        except (KeyError, TypeError, ValueError) as error:
            if isinstance(error, InputError):
                raise
            raise InputError(
                f"This is no pruned structure ({type(error).__name__}: {error}); "
                "give what PrunedStructure.to_dict returned."
            ) from error
        return cls(cuts=cuts)
