"""The setting that all trials of a sweep share: plain values that travel to the nodes."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from trainables.backbones.source import BackboneSource
from trainables.images.tasks import TaskSource


@dataclass(frozen=True, kw_only=True)
class TrialSetting:
    """The values that all trials of a sweep share."""

    backbone: BackboneSource
    task: TaskSource
    store_resolution: int
    """Side in pixels at which the images are decoded and kept."""
    source_task: TaskSource | None
    """The task that the backbone was trained on, where it is known."""
    source_resolution: int
    """Side in pixels at which its images are decoded and kept."""
    mirror: bool
    """Whether a mirrored image keeps its label."""
    levels: tuple[float, ...]
    """Training FLOPs of the rungs, ascending."""
    cache: str | None
    """Folder for decoded images and stored features, on every node its own; None is the user's
    own under the node's temporary folder."""
    trials_uri: str
    """Where the trials' checkpoints lie, reachable from every node."""
    threads: int
    """CPU threads a trial."""
    task_digest: str | None = None
    """Digest of the images that the driver has; a node with others is refused. None: unknown."""
    source_task_digest: str | None = None
    """The same of the source task's."""
    weights_digest: str | None = None
    """The same of the backbone's weights."""

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "TrialSetting":
        """The setting whose `to_dict` gave `values`."""
        source = values["source_task"]
        records = {
            "backbone": BackboneSource(**values["backbone"]),
            "task": TaskSource(**values["task"]),
            "source_task": TaskSource(**source) if source else None,
            "levels": tuple(values["levels"]),
        }
        return cls(**{**values, **records})
