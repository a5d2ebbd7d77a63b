"""Everything about a config that can be checked before compute is spent."""

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from optuna.samplers import RandomSampler
from torch import nn

from analysis import units
from orchestrator.cluster.resources import image_cache
from orchestrator.config import SweepConfig, TaskConfig
from orchestrator.search.strategies import sampler_draws, scheduler
from orchestrator.store.folder import SweepFolder
from orchestrator.tracking.tracker import Tracker
from search_spaces.draws import check_space, draw
from search_spaces.problem import Problem
from search_spaces.recipe import Recipe
from search_spaces.space import Space, load_space
from trainables.backbones import build as backbones
from trainables.backbones.build import Backbone
from trainables.backbones.layers import zero_share
from trainables.costs.flops import count_flops
from trainables.errors import InfeasibleError, InputError
from trainables.finetune import Finetuning
from trainables.images.store import ImageStore, open_store
from trainables.images.tasks import TaskSummary, inspect
from trainables.method import Conditions, load_method

MIN_FREE_BYTES = 1 << 30
SPARSE = 0.1
"""Share of zeros from which a backbone counts as sparse: an 8-bit one has a few per cent."""
TRIED_RECIPES = 4
"""Recipes that are set up on the real backbone to see whether any can be realised."""


@dataclass(frozen=True, kw_only=True)
class Check:
    """One thing to look at."""

    title: str
    run: Callable[[], str]
    """Says in a few words what was found; raises `ValueError`, one sentence, if it is bad."""


class Examination:
    """The checks of one config, in an order in which later ones may use what earlier ones found."""

    def __init__(self, config: SweepConfig) -> None:
        self._config = config
        self._folder = SweepFolder.at(config.folder, uri=config.storage.uri)
        self._summary: TaskSummary | None = None
        self._store: ImageStore | None = None
        self._space: Space | None = None
        self._backbone: Backbone | None = None
        self.checks = (
            Check(title="folder", run=self._check_folder),
            Check(title="task", run=self._check_task),
            Check(title="backbone", run=self._check_backbone),
            Check(title="space", run=self._check_space),
            Check(title="search", run=self._check_search),
            Check(title="images", run=self._check_images),
            Check(title="recipes", run=self._check_recipes),
            Check(title="tracking", run=self._check_tracking),
        )

    def run(self) -> None:
        """All checks; the first bad one raises."""
        for check in self.checks:
            check.run()

    @property
    def summary(self) -> TaskSummary:
        """What is in the task."""
        if self._summary is None:
            self._summary = inspect(self._config.task.to_source())
        return self._summary

    @property
    def problem(self) -> Problem:
        """What the search space must know."""
        images = [count for count in self.summary.class_counts["train"].values() if count]
        return Problem(
            rungs=self._config.rungs.levels(),
            native_resolution=self._config.task.resolution,
            train_images=sum(images),
            classes=len(self.summary.class_names),
            class_imbalance=max(images) / min(images),
            source_task=self._config.source_task is not None,
            sparse_backbone=zero_share(self.model) >= SPARSE,
        )

    @property
    def space(self) -> Space:
        """The search space."""
        if self._space is None:
            self._space = load_space(self._config.space.function)
        return self._space

    @property
    def backbone(self) -> Backbone:
        """The backbone's weights, read once."""
        if self._backbone is None:
            source = self._config.backbone.to_source()
            self._backbone = Backbone(source=source, weights=backbones.load_weights(source))
        return self._backbone

    @cached_property
    def model(self) -> nn.Module:
        """The backbone with its weights and a new head for the task."""
        source = self.backbone.source
        model = backbones.build(source, num_classes=len(self.summary.class_names))
        if self.backbone.weights is not None:
            backbones.load_into(model, self.backbone.weights, source=source)
        return model

    @property
    def store(self) -> ImageStore:
        """The task's images, decoded."""
        if self._store is None:
            self._store = self._open(self._config.task)
        return self._store

    def _open(self, task: TaskConfig) -> ImageStore:
        cache = image_cache(self._config.storage.cache)
        return open_store(task.to_source(), resolution=task.resolution, cache_dir=cache)

    def recipe(self, seed: int) -> Recipe:
        """A random recipe of the space."""
        sampler = RandomSampler(seed=seed)
        return draw(self.space, self._config.space.ranges, self.problem, sampler).recipe

    def _check_folder(self) -> str:
        root = self._folder.root
        self._folder.make()
        free = shutil.disk_usage(root).free
        if free < MIN_FREE_BYTES:
            raise InputError(
                f"Only {units.si(free)}B are free under {root} and a sweep wants at least "
                f"{units.si(MIN_FREE_BYTES)}B; free some space or choose another storage.folder."
            )
        return f"{root}, {units.si(free)}B free"

    def _check_task(self) -> str:
        images = ", ".join(f"{count} {split}" for split, count in self.summary.images.items())
        return f"{len(self.summary.class_names)} classes; images: {images}"

    def _check_space(self) -> str:
        survey = check_space(self.space, self._config.space.ranges, self.problem)
        conditions = Conditions(model=self.model, source_task=self._config.source_task is not None)
        for recipe in survey.recipes:
            load_method(recipe.method).check(recipe, conditions)
        methods, names = ", ".join(survey.methods), ", ".join(survey.names)
        return f"{methods}; {len(survey.names)} parameters: {names}"

    def _check_search(self) -> str:
        search = self._config.search
        sampler_draws(search)
        scheduler(search)
        return f"sampler {search.sampler}, scheduler {search.scheduler}"

    def _check_backbone(self) -> str:
        source = self.backbone.source
        cost = count_flops(self.model, resolution=self._config.task.resolution)
        weights = "random weights" if source.weights is None else f"weights of {source.weights}"
        parameters = units.count(sum(p.numel() for p in self.model.parameters()))
        return (
            f"{source.model}, {parameters} parameters, {weights}; dense at "
            f"{self._config.task.resolution} px an image costs {units.flops(cost.forward_flops)} "
            f"forward and {units.flops(cost.train_flops)} in training"
        )

    def _check_images(self) -> str:
        store = self.store
        if self._config.source_task is not None:
            self._open(self._config.source_task)
        held = sum(split.images.numel() for split in store.splits.values())
        return f"all decoded at {store.resolution} px, {units.si(held)}B"

    def _check_recipes(self) -> str:
        """Sets up random recipes as a trial would, up to the first training step."""
        refusals, source = [], self._config.source_task
        for seed in range(TRIED_RECIPES):
            recipe = self.recipe(seed)
            try:
                Finetuning(
                    recipe=recipe,
                    seed=seed,
                    backbone=self.backbone,
                    store=self.store,
                    levels=self.problem.rungs,
                    mirror=self._config.task.mirror,
                    device=torch.device("cpu"),
                    source_task=(lambda: self._open(source)) if source else None,
                )
            except InfeasibleError as error:
                refusals.append(str(error))
                continue
            return f"set up after {len(refusals) + 1} of {TRIED_RECIPES} draws"
        raise InputError(
            f"None of {TRIED_RECIPES} recipes drawn from the space can be realised, the last "
            f"because {refusals[-1]}; raise rungs.max_flops, narrow space.ranges, or choose "
            "another backbone.model."
        )

    def _check_tracking(self) -> str:
        tracker = tracker_for(self._config, self._folder)
        tracker.check()
        return self._config.tracking.uri or "MLflow embedded, on SQLite in the sweep's folder"


def tracker_for(config: SweepConfig, folder: SweepFolder) -> Tracker:
    """The sweep's tracker: the config's server, else SQLite in the sweep's folder."""
    embedded = config.tracking.uri is None
    return Tracker(
        uri=config.tracking.uri or folder.tracking_uri,
        experiment=config.tracking.experiment or "prunetune",
        artifact_location=folder.artifacts.as_uri() if embedded else None,
    )
