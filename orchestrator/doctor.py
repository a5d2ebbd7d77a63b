"""The checks of a config: everything that can be known to be wrong before compute is spent."""

import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from analysis import units
from orchestrator.cluster.resources import trials_here
from orchestrator.inputs import SweepInputs
from orchestrator.pace import measure_pace
from orchestrator.search.chance import Chance
from orchestrator.search.rehearsal import Outlook, Rehearsal
from orchestrator.search.strategies import build_strategy, sampler_draws, scheduler
from orchestrator.store.folder import SweepFolder
from orchestrator.tracking.tracker import tracker_for
from search_spaces.draws import check_space
from search_spaces.names import with_fields
from trainables.backbones.contract import check_contract
from trainables.costs.flops import count_flops
from trainables.errors import InfeasibleError, InputError
from trainables.finetune import Finetuning
from trainables.images.store import ImageStore
from trainables.method import Conditions, load_method

MIN_FREE_BYTES = 1 << 30
TRIED_RECIPES = 4
"""Recipes that are set up on the real backbone to see whether any can be realised."""


@dataclass(frozen=True, kw_only=True)
class Check:
    """A check with its name."""

    title: str
    run: Callable[[], str]
    """Says in a few words what was found; raises `UserError`, one sentence, if it is bad."""


class Examination:
    """The checks of one sweep's inputs, in an order in which each finds loaded what it needs."""

    def __init__(self, inputs: SweepInputs) -> None:
        self._inputs = inputs
        self._config = inputs.config
        self._folder = SweepFolder.at(self._config.folder, uri=self._config.storage.uri)
        self.checks = (
            Check(title="folder", run=self._check_folder),
            Check(title="task", run=self._check_task),
            Check(title="backbone", run=self._check_backbone),
            Check(title="space", run=self._check_space),
            Check(title="search", run=self._check_search),
            Check(title="start", run=lambda: self._inputs.start.told),
            Check(title="images", run=self._check_images),
            Check(title="recipes", run=self._check_recipes),
            Check(title="tracking", run=self._check_tracking),
        )

    def run(self) -> None:
        """Runs all checks; the first bad one raises."""
        for check in self.checks:
            check.run()

    def outlook(self) -> Outlook:
        """Rehearses the sweep at this machine's pace, as if it had not begun.

        After those of the start, recipes are drawn at random: the model draws others, hardly
        changes how many go how far, and takes longer. No trial is taken to be infeasible or to
        diverge. Raises `InputError` if the budget buys nothing.
        """
        inputs, config = self._inputs, self._config
        search = config.search.resolved().model_copy(update={"sampler": "random"})
        with TemporaryDirectory() as folder:
            strategy = build_strategy(
                search,
                study_path=Path(folder) / "optuna.journal",
                sweep_id="rehearsal",
                space=inputs.space,
                ranges=config.space.ranges,
                problem=inputs.problem,
                seed=config.seed,
                chance=Chance.of(inputs.summary.class_counts["validation"], min_peers=1),
                budget=config.budget,
                start=inputs.start.recipes,
                background=False,
            )
            rehearsal = Rehearsal(
                replace(strategy, judges=()),  # nobody learns, so nobody may be told by it
                budget=config.budget,
                levels=inputs.problem.rungs,
                pace=measure_pace(inputs),
                workers=trials_here(config.resources),
                seed=config.seed,
                confirm=search.confirm,
            )
            outlook = rehearsal.run()
        if not outlook.total.trials:
            raise InputError(
                f"budget.sweep_flops={config.budget.sweep_flops:g} buys no trial: the space's "
                f"cheapest begins with {inputs.problem.rungs[0]:g} training FLOPs or more; raise "
                "the budget or lower rungs.min_flops."
            )
        return outlook

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
        summary = self._inputs.summary
        images = ", ".join(f"{count} {split}" for split, count in summary.images.items())
        passed_over = f"; passed over: {'; '.join(map(str, summary.passed_over))}"
        return (
            f"{len(summary.class_names)} classes; images: {images}"
            f"{passed_over if summary.passed_over else '; none passed over'}"
        )

    def _check_space(self) -> str:
        inputs = self._inputs
        survey = check_space(inputs.space, self._config.space.ranges, inputs.problem)
        conditions = Conditions(
            model=inputs.model, source_task=self._config.source_task is not None
        )
        for recipe in survey.recipes:
            load_method(recipe.method).check(recipe, conditions)
        methods, names = ", ".join(survey.methods), ", ".join(map(with_fields, survey.names))
        return f"{methods}; {len(survey.names)} parameters: {names}"

    def _check_search(self) -> str:
        search = self._config.search
        sampler_draws(search)
        scheduler(search)
        search = search.resolved()
        return f"sampler {search.sampler}, scheduler {search.scheduler}"

    def _check_backbone(self) -> str:
        source, model = self._inputs.backbone.source, self._inputs.model
        resolution, classes = self._config.task.resolution, len(self._inputs.summary.class_names)
        check_contract(model, classes=classes, resolution=resolution)
        cost = count_flops(model, resolution=resolution)
        weights = "random weights" if source.weights is None else f"weights of {source.weights}"
        parameters = units.count(sum(p.numel() for p in model.parameters()))
        return (
            f"{source.model}, {parameters} parameters, {weights}; dense at "
            f"{self._config.task.resolution} px an image costs {units.flops(cost.forward_flops)} "
            f"forward and {units.flops(cost.train_flops)} in training"
        )

    def _check_images(self) -> str:
        decoded = f"all decoded at {_held(self._inputs.store)}"
        if self._config.source_task is None:
            return decoded
        return f"{decoded}; the source task's at {_held(self._inputs.source_store)}"

    def _check_recipes(self) -> str:
        """Sets up random recipes as a trial would, up to the first training step."""
        inputs, refusals = self._inputs, []
        source_task = (lambda: inputs.source_store) if self._config.source_task else None
        for seed in range(TRIED_RECIPES):
            recipe = inputs.recipe(seed)
            try:
                Finetuning(
                    recipe=recipe,
                    seed=seed,
                    backbone=inputs.backbone,
                    store=inputs.store,
                    levels=inputs.problem.rungs,
                    mirror=self._config.task.mirror,
                    device=torch.device("cpu"),
                    source_task=source_task,
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
        tracker_for(self._config.tracking, self._folder).check()
        return self._config.tracking.uri or "MLflow embedded, on SQLite in the sweep's folder"


def _held(store: ImageStore) -> str:
    """Says at which side the images are kept, and how much room they take."""
    held = sum(split.images.numel() for split in store.splits.values())
    return f"{store.resolution} px, {units.si(held)}B"
