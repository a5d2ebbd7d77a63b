"""The config's sections on the cluster: where it is, and what a trial takes of it."""

import math
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, PositiveInt

from orchestrator.section import Section


def _gpus(value: Any) -> Any:
    """Refuses everything but a number from 0, and `auto`."""
    if value == "auto" or (isinstance(value, int | float) and 0 <= value < math.inf):
        return value
    raise ValueError("must be a number of GPUs, at least 0, or auto")


Gpus = Annotated[float | Literal["auto"], BeforeValidator(_gpus)]


class ResourcesConfig(Section):
    """The resources of a trial."""

    cpus: PositiveInt = 1
    """CPUs a trial."""
    gpus: Gpus = 0.0
    """GPUs a trial; a fraction packs several on one. `auto` gives each the share of one that its
    memory takes, as probed on one of the cluster's GPUs before the first trial."""
    concurrent: PositiveInt | None = None
    """Trials side by side; as many as the cluster holds at the start when left out. Set it for a
    cluster that grows."""
    max_failures: int = Field(default=3, ge=0)
    """The number of times that a trial is set up again after it raised or lost its node."""


class RayConfig(Section):
    """The Ray cluster that the trials run on."""

    address: str | None = None
    """A running cluster's address; `auto` is the one that this machine belongs to. When left out,
    Ray is started on this machine."""
