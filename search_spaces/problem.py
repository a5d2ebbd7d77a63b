"""The problem: what a search space must know of the task, the backbone and the compute grid."""

from dataclasses import dataclass, replace


@dataclass(frozen=True, kw_only=True)
class Problem:
    """The facts a search space builds its ranges from."""

    rungs: tuple[float, ...]
    """Levels of cumulative training FLOPs, ascending; a recipe aims at one of them."""
    native_resolution: int
    """Largest input side in pixels: the backbone's own, or what the config sets instead."""
    train_images: int
    """Images of the training split."""
    classes: int
    """Classes of the task."""
    class_imbalance: float = 1.0
    """Training images of the most common class for each one of the rarest that has any."""
    source_task: bool = False
    """Whether the config names the task that the backbone was trained on."""
    sparse_backbone: bool = False
    """Whether the backbone arrives with weights held at zero; a few zeros are chance."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "rungs", tuple(self.rungs))
        ascending = all(low < high for low, high in zip(self.rungs, self.rungs[1:], strict=False))
        rules: tuple[tuple[str, bool, str], ...] = (
            (
                "rungs",
                bool(self.rungs) and self.rungs[0] > 0 and ascending,
                "must be one or more positive, strictly ascending numbers of FLOPs",
            ),
            ("native_resolution", self.native_resolution >= 8, "must be at least 8 pixels"),
            ("train_images", self.train_images >= 1, "must be at least 1 image"),
            ("classes", self.classes >= 2, "must be at least 2 classes"),
            ("class_imbalance", self.class_imbalance >= 1, "must be a ratio of 1 or more"),
        )
        for name, holds, rule in rules:
            if not holds:
                raise ValueError(f"{name}={getattr(self, name)!r} {rule}.")

    def capped(self, max_flops: float) -> "Problem | None":
        """The same problem with only the rungs up to `max_flops`; `None` when there is none."""
        rungs = tuple(rung for rung in self.rungs if rung <= max_flops)
        return replace(self, rungs=rungs) if rungs else None
