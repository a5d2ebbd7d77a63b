"""The identity of a sweep: the content of its task and weights, and the libraries' versions."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from orchestrator.inputs import SweepInputs
from trainables.backbones.digest import weights_digest
from trainables.errors import InputError

LIBRARIES = ("prunetune", "torch", "timm", "pillow", "numpy")
"""Distributions whose versions may change what is decoded, built or trained."""


@dataclass(frozen=True, kw_only=True)
class Identity:
    """The content that a sweep is made from; a path stays the same when its content changes."""

    task: str | None
    """Digest of the classes, labels and decoded pixels of all splits."""
    source_task: str | None
    """The same of the task that the backbone was trained on; None where the config names none."""
    weights: str | None
    """Digest of the backbone's weights; None for random ones."""
    class_names: tuple[str, ...]
    """The task's classes in the order of their labels."""
    versions: Mapping[str, str]
    """Versions of `LIBRARIES`."""

    def to_dict(self) -> dict[str, Any]:
        """Returns plain JSON types."""
        return asdict(self) | {"class_names": list(self.class_names)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Identity":
        """Returns the identity whose `to_dict` gave `values`; keys of later versions are left."""
        known = {field.name: values[field.name] for field in fields(cls)}
        return cls(**known | {"class_names": tuple(values["class_names"])})


def identify(inputs: SweepInputs) -> Identity:
    """Returns what the sweep would be made from now; decodes the images where they are not yet."""
    source = None if inputs.config.source_task is None else inputs.source_store.digest
    return Identity(
        task=inputs.store.digest,
        source_task=source,
        weights=weights_digest(inputs.backbone.weights),
        class_names=inputs.store.class_names,
        versions={name: found for name in LIBRARIES if (found := _version(name))},
    )


def check_same(now: Identity, before: Identity, *, sweep: Path) -> None:
    """Raises `InputError` if images or weights are not those that the sweep was begun with.

    Other versions of libraries are named with it, because they may decode images differently.
    """
    changed = [
        what
        for what, is_same in (
            (_classes_changed(now, before), now.class_names == before.class_names),
            ("the images or labels of task", now.task == before.task),
            ("the images or labels of source_task", now.source_task == before.source_task),
            ("the weights of backbone", now.weights == before.weights),
        )
        if not is_same
    ]
    if not changed:
        return
    versions = changed_versions(now, before)
    raise InputError(
        f"The sweep in {sweep} was begun with another state of {' and of '.join(changed)}"
        f"{f' (and with {versions})' if versions else ''}, and results on both cannot be "
        "compared; put back what was there, run with --fresh to start over, or choose another "
        "name."
    )


def changed_versions(now: Identity, before: Identity) -> str:
    """Returns the libraries that have other versions now, as a message tells them; "" if none."""
    names = sorted(set(now.versions) | set(before.versions))
    return ", ".join(
        f"{name} {before.versions.get(name, 'unknown')}, now {now.versions.get(name, 'none')}"
        for name in names
        if now.versions.get(name) != before.versions.get(name)
    )


def _classes_changed(now: Identity, before: Identity) -> str:
    added = [name for name in now.class_names if name not in before.class_names]
    gone = [name for name in before.class_names if name not in now.class_names]
    said = [
        f"{word} {', '.join(found)}" for word, found in (("new:", added), ("gone:", gone)) if found
    ]
    return f"the classes of task ({'; '.join(said) or 'in another order'})"


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
