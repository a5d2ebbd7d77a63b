"""The checkpoint of one trial: what it goes on from, and what one towards more compute does.

A trial's trunk is its first steps, which do not depend on the compute that its recipe aims at. A
run of the recipe towards more takes the same ones, and may go on from after them instead.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from search_spaces.recipe import Recipe
from trainables.checkpoints import Tensors, load_checkpoint, save_checkpoint
from trainables.errors import first_line
from trainables.measurement import Measurement

_GROUPS = ("model", "optimizer", "transfer")
_MODELS = ("model", "average")
_AVERAGE = "average"
"""In a checkpoint only where what was measured is made from the average, and is not the average."""
_TRUNK = "trunk_"
"""Begins the names of the trunk's groups, which are there only where training has left it."""


class CannotContinueError(Exception):
    """A trial cannot go on from another's trunk; the message says why. It is no fault."""


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """A trial's training after one of its steps: all that the later ones depend on."""

    step: int
    """Steps taken."""
    tensors: Tensors
    """The learner's, in its groups."""
    learner: Mapping[str, Any]
    """The rest of the learner's state, as JSON keeps it."""
    skippable_flops: float
    """Training FLOPs so far that hardware which skips zeros could have skipped."""
    train_seconds: float
    """Wall time of preparation and training so far."""

    def copied(self) -> "Snapshot":
        """Returns the same in the CPU's memory, which further steps leave as it is."""
        copies = {
            group: {name: value.detach().to("cpu", copy=True) for name, value in tensors.items()}
            for group, tensors in self.tensors.items()
        }
        return replace(self, tensors=copies)


@dataclass(frozen=True, kw_only=True)
class Trunk:
    """The first steps of a trial, which a run of its recipe towards more compute takes as well."""

    steps: int
    """Their number, at least 1."""
    prices: Mapping[str, float]
    """FLOPs of what the trial does: where they are others, so are the steps."""
    snapshot: Snapshot | None = None
    """The training after them; None until a later step is taken."""


@dataclass(frozen=True, kw_only=True)
class TrialCheckpoint:
    """A trial as it stands at a rung, or at the end of its trunk."""

    recipe: Recipe
    seed: int
    structure: Mapping[str, Any]
    """The structure in which the method's preparation left the backbone."""
    preparation_flops: float
    snapshot: Snapshot
    measurement: Measurement | None
    """The rung's; None at the end of a trunk."""
    trunk: Trunk | None
    """None where a run towards more compute shares no step."""

    def save(self, uri: str, *, measured: Mapping[str, Tensor] | None) -> None:
        """Writes the checkpoint of a rung; `measured` is the model measured, if not the average."""
        assert self.measurement is not None  # of a rung
        tensors = dict(self.snapshot.tensors)
        tensors["measured"] = tensors.pop(_AVERAGE) if measured is None else measured
        trunk = self.trunk
        if trunk is not None and trunk.snapshot is not None:
            tensors |= _trunk_groups(trunk.snapshot.tensors, besides=self.snapshot.tensors)
        save_checkpoint(
            uri,
            tensors=tensors,
            state={
                "recipe": self.recipe.to_dict(),
                "seed": self.seed,
                "structure": self.structure,
                "setup_flops": self.preparation_flops,
                "step": self.snapshot.step,
                "skippable_flops": self.snapshot.skippable_flops,
                "learner": self.snapshot.learner,
                "measurement": self.measurement.to_dict(),
                "trunk": None if trunk is None else _trunk_state(trunk),
            },
        )

    @classmethod
    def load(cls, uri: str) -> "TrialCheckpoint":
        """Returns the checkpoint of a rung, as `save` wrote it."""
        _, state = load_checkpoint(uri, ())
        trunk = state.get("trunk")  # older ones have none
        names = [*_GROUPS, "measured"]
        if trunk is not None and "learner" in trunk:
            names += [_TRUNK + group for group in (*_GROUPS, _AVERAGE)]
        tensors, _ = load_checkpoint(uri, names, optional=(_AVERAGE,))
        groups = {group: tensors[group] for group in _GROUPS}
        groups[_AVERAGE] = tensors.get(_AVERAGE, tensors["measured"])
        measurement = Measurement.from_dict(state["measurement"])
        return cls(
            recipe=Recipe.from_dict(state["recipe"]),
            seed=state["seed"],
            structure=state["structure"],
            preparation_flops=state["setup_flops"],
            snapshot=Snapshot(
                step=state["step"],
                tensors=groups,
                learner=state["learner"],
                skippable_flops=state["skippable_flops"],
                train_seconds=measurement.train_seconds,
            ),
            measurement=measurement,
            trunk=None if trunk is None else _loaded_trunk(trunk, tensors, besides=groups),
        )

    def at_trunk(self) -> "TrialCheckpoint":
        """Returns the trial as it stood after the trunk's last step, or at an earlier rung.

        Raises `CannotContinueError` where a run towards more compute shares no step.
        """
        if self.trunk is None:
            raise CannotContinueError("no step of it is the same in a run towards more compute")
        return replace(self, snapshot=self.trunk.snapshot or self.snapshot, measurement=None)


def load_trunk(uri: str, *, recipe: Recipe, seed: int) -> TrialCheckpoint:
    """Returns the trial saved at `uri` as it stood after steps that `recipe` may share with it.

    Raises `CannotContinueError` where it is another recipe's but for the compute aimed at, or keeps
    no such steps, or cannot be read.
    """
    try:
        found = TrialCheckpoint.load(uri)
    except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
        raise CannotContinueError(f"it cannot be read: {first_line(error)}") from error
    if found.seed != seed or replace(found.recipe, target_flops=recipe.target_flops) != recipe:
        raise CannotContinueError("it is of another recipe or seed")
    return found.at_trunk()


def _trunk_groups(trunk: Tensors, *, besides: Tensors) -> dict[str, Mapping[str, Tensor]]:
    """Returns the groups that are written; of models only what training has moved since."""
    groups = dict(trunk)
    for model in _MODELS:
        later = besides[model]
        groups[model] = {
            name: value
            for name, value in trunk[model].items()
            if not torch.equal(value, later[name].cpu())
        }
    return {_TRUNK + name: group for name, group in groups.items()}


def _trunk_state(trunk: Trunk) -> dict[str, Any]:
    state: dict[str, Any] = {"steps": trunk.steps, "prices": dict(trunk.prices)}
    if trunk.snapshot is None:
        return state
    return state | {
        "learner": trunk.snapshot.learner,
        "skippable_flops": trunk.snapshot.skippable_flops,
        "train_seconds": trunk.snapshot.train_seconds,
    }


def _loaded_trunk(state: Mapping[str, Any], tensors: Tensors, *, besides: Tensors) -> Trunk:
    """Returns the trunk of which `state` and the groups were written."""
    trunk = Trunk(steps=state["steps"], prices=state["prices"])
    if "learner" not in state:
        return trunk
    groups = {group: tensors[_TRUNK + group] for group in besides}
    groups |= {model: {**besides[model], **groups[model]} for model in _MODELS}
    snapshot = Snapshot(
        step=trunk.steps,
        tensors=groups,
        learner=state["learner"],
        skippable_flops=state["skippable_flops"],
        train_seconds=state["train_seconds"],
    )
    return replace(trunk, snapshot=snapshot)
