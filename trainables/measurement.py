"""The report of a trial at a rung: its measurement, and how it stands."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from enum import StrEnum
from typing import Any


class Outcome(StrEnum):
    """How a trial stands after a report."""

    RUNNING = "running"
    """More rungs lie ahead."""
    COMPLETE = "complete"
    """The compute aimed at is spent."""
    INFEASIBLE = "infeasible"
    """The recipe cannot be realised on this backbone and these rungs."""
    DIVERGED = "diverged"
    """The loss stopped being finite."""


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """One point of a trial's curve. `None` means unknown, never 0."""

    rung: int
    """Index of the compute level at or under which this was measured, from 0."""
    train_flops: float
    """Training FLOPs the recipe has spent, preparation included, cumulative."""
    executed_flops: float
    """Training FLOPs executed since the previous report of this attempt: what the sweep pays."""
    eval_flops: float
    """FLOPs spent on validation so far, cumulative; not part of `train_flops`."""
    inference_flops: float
    """FLOPs of one image's forward pass."""
    params: int
    """Parameters of the model."""
    updated_params: int
    """Parameters that training may change."""
    val_error: float
    """Share of validation images classified wrongly, 0-1."""
    val_loss: float
    """Mean cross-entropy on the validation split, in nats."""
    test_error: float | None = None
    """Share of test images classified wrongly; measured for frontier points, never chosen by."""
    train_seconds: float
    """Wall time of preparation and training steps so far, cumulative."""
    images_seen: int
    """Training images consumed by steps so far, repeats included."""
    peak_memory_bytes: int | None = None
    """Peak device memory on a GPU; unknown on CPU."""
    nonzero_params: int | None = None
    """Parameters that are not zero; unknown in what an earlier version measured."""
    sparse_train_flops: float | None = None
    """`train_flops` without the products with weights that the method held at zero, as hardware
    that skips zeros would execute; dense hardware executes `train_flops`."""
    sparse_inference_flops: float | None = None
    """`inference_flops` without the products with weights that are zero, likewise."""
    trunk_flops: float = 0.0
    """The part of `train_flops` that a run of the same recipe and seed towards more compute spends
    on the very same steps: it can go on from there. Not 0 only where a trial that is over keeps
    them."""

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Measurement":
        """The measurement whose `to_dict` gave `values`; other names are ignored."""
        return cls(**{f.name: values[f.name] for f in fields(cls) if f.name in values})


@dataclass(frozen=True, kw_only=True)
class Report:
    """A trial's word to the driver at a rung, or at its end."""

    outcome: Outcome
    measurement: Measurement | None = None
    """None when the trial ends without one."""
    unmeasured_flops: float = 0.0
    """Training FLOPs executed after the last measurement by a trial that ends without one."""
    reason: str | None = None
    """Why it is infeasible or diverged."""
    needs_flops: float | None = None
    """The least training FLOPs with which an infeasible recipe could take a step; None where they
    are not known, or nothing helps."""
    set_up_at: float | None = None
    """When this trial's set-up began in its actor, Unix seconds; None where nobody looked."""
    reported_at: float | None = None
    """When the report left the actor, likewise."""

    def to_json(self) -> str:
        """One line of JSON."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "Report":
        """The report whose `to_json` gave `text`."""
        values = json.loads(text)
        measured = values["measurement"]
        return cls(
            **values
            | {
                "outcome": Outcome(values["outcome"]),
                "measurement": Measurement.from_dict(measured) if measured else None,
            }
        )
