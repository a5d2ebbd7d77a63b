"""The plan: how many filters go, which, and where."""

from dataclasses import dataclass
from enum import StrEnum

from trainables.errors import InputError


class Criterion(StrEnum):
    """The measure of how much a filter is worth keeping."""

    L1 = "l1"
    """Sum of the absolute weights."""
    L2 = "l2"
    """Euclidean norm of the weights."""
    BATCH_NORM_SCALE = "batch_norm_scale"
    """Gain of the norms that the channel passes."""
    GEOMETRIC_MEDIAN = "geometric_median"
    """Distance from the other filters of the layer."""
    TAYLOR = "taylor"
    """Squared first-order change of the loss without the channel; needs labelled images."""
    FISHER = "fisher"
    """Mean squared derivative of each image's loss by the channel; needs labelled images."""
    RANDOM = "random"
    """Chance: the control that every criterion must beat."""
    FOLDING = "folding"
    """Likeness: filters that resemble one another are merged."""


class WidthRule(StrEnum):
    """Which channels may go."""

    INNER = "inner"
    """Block-internal channels only: residual stream and representation keep their widths."""
    ALL = "all"
    """The residual stream and the representation too; only the classifier's outputs stay."""


class FilterScope(StrEnum):
    """Which filters compete with one another."""

    LAYER = "layer"
    """Each layer loses the same share."""
    GLOBAL = "global"
    """One ranking over all layers of scores divided by their layer's mean; no layer is emptied."""
    ISOMORPHIC = "isomorphic"
    """Like `GLOBAL`, a ranking for each kind of layers that channels pass (arXiv 2407.04616)."""


@dataclass(frozen=True, kw_only=True)
class PruningPlan:
    """Zero-shot structured pruning, before any finetuning (arXiv 2304.13164).

    The paper's criterion is magnitude and it leaves the representation's width alone (`INNER`);
    the other choices are of later work or ours.
    """

    ratio: float
    """Share of the filters to remove in each prunable layer, in [0, 1); 0 means dense."""
    criterion: Criterion = Criterion.L1
    """The measure of how much a filter is worth keeping."""
    width_rule: WidthRule = WidthRule.INNER
    """Which channels may go."""
    scope: FilterScope = FilterScope.LAYER
    """Which filters compete with one another."""
    round_to: int = 1
    """Widths become multiples of this; at least one multiple, never more than there were."""

    def __post_init__(self) -> None:
        if not 0 <= self.ratio < 1:
            raise InputError(f"ratio={self.ratio!r} must lie in [0, 1); 0 means dense.")
        if self.round_to < 1:
            raise InputError(f"round_to={self.round_to!r} must be at least 1; 1 means any width.")
        for name, kind in (
            ("criterion", Criterion),
            ("width_rule", WidthRule),
            ("scope", FilterScope),
        ):
            value = getattr(self, name)
            if value not in tuple(kind):
                known = ", ".join(repr(member.value) for member in kind)
                raise InputError(f"{name}={value!r} must be one of {known}.")
            object.__setattr__(self, name, kind(value))
