"""The config: one YAML, checked before any compute is spent."""

import difflib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, Self, TypeVar, get_args, get_type_hints

import yaml
from pydantic import (
    Field,
    PositiveFloat,
    PositiveInt,
    ValidationError,
    model_validator,
)

from orchestrator.cluster.config import RayConfig, ResourcesConfig
from orchestrator.search.config import BEFORE_AUTO, Budget, SearchConfig
from orchestrator.section import Section
from trainables.backbones.source import BackboneSource
from trainables.errors import InputError, first_line
from trainables.images.tasks import TaskSource
from trainables.rungs import rung_levels

C = TypeVar("C", bound=Section)


@dataclass(frozen=True, kw_only=True)
class TaskConfig(TaskSource):
    """The labelled images: where they come from, and how a sweep keeps and shows them."""

    resolution: Annotated[int, Field(ge=8)] = 64
    """Side in pixels at which images are decoded and kept; no recipe sees more."""
    mirror: bool = True
    """True if a mirrored image keeps its label; digits, signs and letters do not."""

    def to_source(self) -> TaskSource:
        """Returns where the images come from, without how a sweep uses them."""
        return TaskSource(**{f.name: getattr(self, f.name) for f in fields(TaskSource)})


class SpaceConfig(Section):
    """The search space."""

    function: str = "filter_pruning"
    """A space of `search_spaces/` by name, or `module:function`."""
    ranges: dict[str, Any] = Field(default_factory=dict)
    """Parameters narrowed to a range, restricted to choices, or fixed, by name."""
    start: list[dict[str, Any]] = Field(default_factory=list)
    """Recipes to try first, in this order: values by parameter; what is left out is drawn."""


class RungsConfig(Section):
    """The grid of training compute at which every trial is measured."""

    min_flops: PositiveFloat
    """The lowest level, FLOPs."""
    max_flops: PositiveFloat
    """No level lies above this; raising it adds levels to a sweep."""
    per_decade: PositiveInt = 3
    """Levels a factor of ten."""

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.max_flops < self.min_flops:
            raise ValueError(
                f"has max_flops={self.max_flops:g} below min_flops={self.min_flops:g}; "
                "raise the one or lower the other"
            )
        return self

    def levels(self) -> tuple[float, ...]:
        return rung_levels(**self.model_dump())


class StorageConfig(Section):
    """The places of the sweep's files."""

    folder: str | None = None
    """The sweep's folder; `./runs/NAME` when left out."""
    uri: str | None = None
    """The place of journal, measurements and checkpoints if not the folder; clusters without a
    shared disk need one. Any URI that Arrow reads and writes, such as s3://bucket/prefix."""
    cache: str | None = None
    """Folder for decoded images and stored features on every node; under the node's temporary
    folder when left out."""


class TrackingConfig(Section):
    """The MLflow view of the sweep."""

    uri: str | None = None
    """A tracking server; SQLite in the sweep's folder when left out."""
    experiment: str | None = None
    """The experiment's name; `prunetune` when left out."""


class SweepConfig(Section):
    """Everything a sweep needs to know."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=100)
    """The sweep's name, and its folder's under ./runs."""
    seed: int = Field(default=0, ge=0)
    """Seed of everything that is drawn."""
    task: TaskConfig
    source_task: TaskConfig | None = None
    """The task that the backbone was trained on. Methods that train there once more need it."""
    backbone: BackboneSource
    space: SpaceConfig = SpaceConfig()
    budget: Budget
    rungs: RungsConfig
    search: SearchConfig = SearchConfig()
    resources: ResourcesConfig = ResourcesConfig()
    ray: RayConfig = RayConfig()
    storage: StorageConfig = StorageConfig()
    tracking: TrackingConfig = TrackingConfig()

    @property
    def folder(self) -> Path:
        """The sweep's folder, absolute."""
        return Path(self.storage.folder or Path("runs") / self.name).expanduser().resolve()

    def resolved(self) -> Self:
        """Returns the config with the names that auto stands for."""
        return self.model_copy(update={"search": self.search.resolved()})


class PretrainConfig(Section):
    """Everything that the pretraining of a backbone needs to know."""

    task: TaskConfig
    backbone: BackboneSource
    out: str
    """The safetensors file to write; a JSON card is written next to it."""
    epochs: PositiveInt = 20
    learning_rate: PositiveFloat = 0.05
    weight_decay: float = Field(default=5e-4, ge=0.0)
    batch_size: int = Field(default=64, ge=2)
    label_smoothing: float = Field(default=0.1, ge=0.0, lt=1.0)
    augmentation: float = Field(default=0.3, ge=0.0, le=1.0)
    seed: int = Field(default=0, ge=0)


def read_config(kind: type[C], path: Path, overrides: Iterable[str] = ()) -> C:
    """Returns the config in the YAML file at `path`, with `key.path=value` overrides applied.

    Raises `InputError`, one sentence, when the file is missing, is no YAML, has unknown keys, or
    has values that make no sense.
    """
    values = _values(path)
    for override in overrides:
        _override(values, override)
    return validate(kind, values, what=str(path))


def read_begun(path: Path) -> SweepConfig:
    """Returns the config that a sweep was begun with, which lies at `path` in its folder.

    Where an older prunetune did not write what was not to be chosen then, it is what it was.
    """
    values = _values(path)
    values["search"] = {**BEFORE_AUTO, **(values.get("search") or {})}
    return validate(SweepConfig, values, what=str(path))


def validate(kind: type[C], values: Mapping[str, Any], *, what: str) -> C:
    """Returns `values` as a config; raises `InputError` with the first thing that is wrong."""
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        raise InputError(f"{what}: {_sentence(kind, error)}") from error


def to_yaml(config: Section) -> str:
    """Writes the config as resolved, in YAML; `read_config` gives an equal one back."""
    text: str = yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)
    return text


class _Loader(yaml.SafeLoader):
    """Reads `1e9` as a number, which YAML 1.1 takes for text."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?\d+(\.\d*)?[eE][-+]?\d+$"), list("-+0123456789")
)


def _parse(text: str, *, what: str) -> Any:
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        raise InputError(f"{what} is not valid YAML: {_where(error)}.") from error


def _where(error: yaml.YAMLError) -> str:
    if not isinstance(error, yaml.MarkedYAMLError) or error.problem_mark is None:
        return first_line(error)
    mark = error.problem_mark
    return f"{error.problem} in line {mark.line + 1}, column {mark.column + 1}"


def _values(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(
            f"The config {path} cannot be read ({error.strerror}); give the path of a YAML file."
        ) from error
    except UnicodeDecodeError as error:
        raise InputError(f"The config {path} is no text; give the path of a YAML file.") from error
    values = _parse(text, what=str(path))
    if not isinstance(values, dict):
        raise InputError(f"The config {path} holds no mapping; see the README for an example.")
    return values


def _override(values: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    *parents, last = key.split(".")
    if not equals or not all((*parents, last)):
        raise InputError(
            f"{override!r} is no override; write KEY=VALUE with dots between the levels, "
            "such as budget.trials=50."
        )
    at = values
    for parent in parents:
        if at.get(parent) is None:  # a section that is left out, or empty
            at[parent] = {}
        at = at[parent]
        if not isinstance(at, dict):
            raise InputError(
                f"{override!r} reaches into {parent}, which is {at!r}; only sections have keys."
            )
    at[last] = _parse(text, what=override)


def _sentence(kind: type[Section], error: ValidationError) -> str:
    """Says the first thing that is wrong: key, value, rule."""
    first = error.errors()[0]
    place = ".".join(str(part) for part in first["loc"]) or "the config"
    given = first["input"]
    shown = place if isinstance(given, dict) else f"{place}={given!r}"
    match first["type"]:
        case "extra_forbidden" | "unexpected_keyword_argument":
            return _unknown_key(kind, first["loc"])
        case "invalid_key":
            key = first["loc"][-1]
            return f"the key {key!r} is not a word; put it in quotes if it is meant as one."
        case "missing":
            return f"{place} is missing; it must be given."
        case "model_type" | "dataclass_type" | "dict_type":
            return f"{shown} should be a section; write its keys below it, indented."
        case "value_error":
            return _refusal(place, shown, first["ctx"]["error"])
    rule = re.sub(r"^[A-Z][a-z]+ should ", "should ", first["msg"])
    if rule.startswith("should "):
        return f"{shown} {rule}."
    return f"{shown} is not accepted: {rule}."


def _refusal(place: str, shown: str, error: ValueError) -> str:
    """Completes what a check of ours says: a record's is a sentence, a section's only a rule."""
    if isinstance(error, InputError):
        return str(error.under(place))
    return f"{shown} {error}."


def _unknown_key(kind: type[Section], place: tuple[int | str, ...]) -> str:
    known = _keys_at(kind, place[:-1])
    near = difflib.get_close_matches(str(place[-1]), known, n=1)
    hint = f"did you mean {near[0]}?" if near else f"the keys there are {', '.join(known)}."
    return f"the key {'.'.join(map(str, place))} is not known; {hint}"


def _keys_at(kind: type[Section], place: tuple[int | str, ...]) -> list[str]:
    """Returns the keys of the section at `place`, where an unknown one was found."""
    at: Any = kind
    for part in place:
        section = get_type_hints(at)[str(part)]
        at = next((one for one in get_args(section) if one is not NoneType), section)
    return [f.name for f in fields(at)] if is_dataclass(at) else list(at.model_fields)
