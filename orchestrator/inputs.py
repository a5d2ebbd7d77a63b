"""The inputs of a sweep: everything that its config names, each loaded once, when it is needed."""

from collections.abc import Sequence
from functools import cached_property
from typing import Any, Self, TypeVar, overload

from optuna.samplers import RandomSampler
from torch import nn

from orchestrator.config import SweepConfig, TaskConfig
from orchestrator.search.fitting import OfferedSpace
from orchestrator.search.start import StartRecipe
from orchestrator.start_choice import StartChoice, choose_start
from search_spaces.draws import draw
from search_spaces.problem import Problem
from search_spaces.recipe import Recipe
from search_spaces.space import Space, load_space
from trainables.backbones import build as backbones
from trainables.backbones.build import Backbone
from trainables.backbones.layers import zero_share
from trainables.errors import UserError, keys_of
from trainables.images.cache import image_cache
from trainables.images.store import ImageStore, open_store
from trainables.images.tasks import TaskSummary, inspect

T = TypeVar("T")

SPARSE = 0.1
"""Share of zeros from which a backbone counts as sparse: an 8-bit one has a few per cent."""


class _FoundOnce(cached_property[T]):
    """A property that is found once: what it refuses is not looked for again, but raised again."""

    @overload
    def __get__(self, instance: None, owner: type[Any] | None = None) -> Self: ...
    @overload
    def __get__(self, instance: object, owner: type[Any] | None = None) -> T: ...
    def __get__(self, instance: object, owner: type[Any] | None = None) -> Self | T:
        if instance is None:
            return self
        refusals: dict[str | None, UserError] = instance.__dict__.setdefault("_refusals", {})
        if self.attrname in refusals:
            raise refusals[self.attrname]
        try:
            return super().__get__(instance, owner)
        except UserError as error:
            refusals[self.attrname] = error
            raise


class SweepInputs:
    """The task, the backbone and the search space of one config.

    Each part raises a `UserError` when it is first asked for and cannot be had.
    """

    def __init__(
        self,
        config: SweepConfig,
        *,
        after: Sequence[str] = (),
        start: Sequence[StartRecipe] | None = None,
    ) -> None:
        """`after` names earlier sweeps; `start` is what the sweep started with if it has begun."""
        self.config = config
        self._after = after
        self._start = start

    @_FoundOnce
    def summary(self) -> TaskSummary:
        """The classes, splits and sizes of the task, from its labels and a few image headers."""
        with keys_of("task"):
            return inspect(self.config.task.to_source())

    @_FoundOnce
    def store(self) -> ImageStore:
        """The task's images, decoded."""
        with keys_of("task"):
            return self._open(self.config.task)

    @_FoundOnce
    def source_store(self) -> ImageStore:
        """The images that the backbone was trained on, decoded; the config must name them."""
        assert self.config.source_task is not None
        with keys_of("source_task"):
            return self._open(self.config.source_task)

    @_FoundOnce
    def backbone(self) -> Backbone:
        """The backbone's source with its weights in memory."""
        source = self.config.backbone
        return Backbone(source=source, weights=backbones.load_weights(source))

    @_FoundOnce
    def model(self) -> nn.Module:
        """The backbone with its weights and a new head for the task."""
        source = self.backbone.source
        model = backbones.build(source, num_classes=len(self.summary.class_names))
        if self.backbone.weights is not None:
            backbones.load_into(model, self.backbone.weights, source=source)
        return model

    @_FoundOnce
    def space(self) -> Space:
        """The search space."""
        return load_space(self.config.space.function)

    @_FoundOnce
    def problem(self) -> Problem:
        """The facts that the search space builds its ranges from."""
        images = [count for count in self.summary.class_counts["train"].values() if count]
        return Problem(
            rungs=self.config.rungs.levels(),
            native_resolution=self.config.task.resolution,
            train_images=sum(images),
            classes=len(self.summary.class_names),
            class_imbalance=max(images) / min(images),
            source_task=self.config.source_task is not None,
            sparse_backbone=zero_share(self.model) >= SPARSE,
        )

    @_FoundOnce
    def start(self) -> StartChoice:
        """The recipes that are tried first."""
        if self._start is not None:
            told = f"{len(self._start)} recipes, chosen when the sweep began"
            return StartChoice(recipes=tuple(self._start), told=told)
        ranges = self.config.space.ranges
        offered = OfferedSpace(space=self.space, ranges=ranges, problem=self.problem)
        return choose_start(self.config, offered, after=self._after)

    def recipe(self, seed: int) -> Recipe:
        """Returns a random recipe of the space within the config's ranges."""
        sampler = RandomSampler(seed=seed)
        return draw(self.space, self.config.space.ranges, self.problem, sampler).recipe

    def _open(self, task: TaskConfig) -> ImageStore:
        cache = image_cache(self.config.storage.cache)
        return open_store(task.to_source(), resolution=task.resolution, cache_dir=cache)
