"""A sweep from its config to its frontier."""

import secrets
import shutil
from collections.abc import Sequence

import ray
from rich.console import Console
from rich.markup import escape

from analysis.frontier import Frontier
from analysis.plots import plot_frontier, save
from analysis.report import write_report
from analysis.table import read_measurements
from orchestrator.cluster.gpu_shares import gpu_shares
from orchestrator.cluster.resources import connect
from orchestrator.cluster.session import run_trials
from orchestrator.config import SweepConfig, read_begun, read_config, to_yaml
from orchestrator.doctor import Examination
from orchestrator.exporting import checkpoint_of, write_model
from orchestrator.identity import Identity, changed_versions, check_same, identify
from orchestrator.inputs import SweepInputs
from orchestrator.search.chance import Chance
from orchestrator.search.config import BEFORE_AUTO
from orchestrator.search.driver import Driver
from orchestrator.search.start import StartRecipe
from orchestrator.search.strategies import build_strategy
from orchestrator.store.beginnings import recorded_identity, recorded_search, recorded_start
from orchestrator.store.folder import SweepFolder
from orchestrator.store.journal import Journal
from orchestrator.store.ledger import Ledger
from orchestrator.store.retention import CheckpointKeeper
from orchestrator.store.tables import TableWriter
from orchestrator.terminal.progress import Progress
from orchestrator.tracking.tracker import Snapshot, Tracker, tracker_for
from trainables.errors import InputError
from trainables.memory_probe import dense
from trainables.trial import measure_test_error
from trainables.trial_setting import TrialSetting

CATCH_UP_SECONDS = 60.0
"""How long the end of a sweep waits for a tracking server that is away."""
FIXED = ("seed", "task", "source_task", "backbone", "space")
"""Parts of the config that may not change over a sweep's life."""


class Sweep:
    """The trials run to find one task's frontier.

    `run` starts it, resumes it, or, if the budget was raised since, extends it.
    """

    def __init__(
        self, config: SweepConfig, *, after: Sequence[str] = (), console: Console | None = None
    ) -> None:
        """`after` names earlier sweeps, by folder, name or URI, whose best recipes are tried first.

        They are read when the sweep begins and not when it goes on.
        """
        self._config = config
        self._after = after
        self._folder = SweepFolder.at(config.folder, uri=config.storage.uri)
        self._console = console or Console(quiet=True)
        self._over = False

    def run(self, *, fresh: bool = False) -> Frontier:
        """Runs until the budget is spent and returns the frontier; `fresh` starts over.

        Raises `InputError` for a config that cannot work, before any trial starts and before
        anything of an earlier sweep is deleted.
        """
        with self._folder.locked():
            if not fresh:
                self._check_unchanged()
                self._keep_search()
            self._console.print("[dim]checking the config …[/]")
            start = None if fresh else self._start_so_far()
            inputs = SweepInputs(self._config, after=self._after, start=start)
            if not fresh:
                self._check_same_content(inputs)
            Examination(inputs).run()
            self._config = self._config.resolved()
            self._console.print(f"[dim]start: {escape(inputs.start.told)}[/]")
            started_ray = connect(self._config.ray.address)
            try:
                if fresh:
                    self._clear()
                self._folder.keep_config(to_yaml(self._config))
                return self._run(inputs)
            finally:
                if started_ray:
                    ray.shutdown()

    def _check_same_content(self, inputs: SweepInputs) -> None:
        """Refuses to go on with images or weights that were changed in their place."""
        recorded = recorded_identity(Journal(self._folder.storage(), "journal"))
        if recorded is None:
            return
        before, now = Identity.from_dict(recorded), identify(inputs)
        check_same(now, before, sweep=self._folder.root)
        if versions := changed_versions(now, before):
            self._console.print(f"[yellow]the sweep was begun with {escape(versions)}[/]")

    def _start_so_far(self) -> list[StartRecipe] | None:
        """The recipes that the sweep started with; None where it has not begun."""
        recipes = recorded_start(Journal(self._folder.storage(), "journal"))
        return None if recipes is None else [StartRecipe(**recipe) for recipe in recipes]

    def _clear(self) -> None:
        self._folder.clear()
        if self._config.tracking.uri is None:  # a server's experiment has others' sweeps too
            tracker_for(self._config.tracking, self._folder).discard()

    def _run(self, inputs: SweepInputs) -> Frontier:
        config, folder = self._config, self._folder
        levels = config.rungs.levels()
        storage = folder.storage()
        journal = Journal(storage, "journal")
        ledger = Ledger(journal)
        sweep_id = ledger.sweep_id or f"{config.name}-{secrets.token_hex(4)}"
        identity = identify(inputs)
        ledger.open(
            sweep_id=sweep_id,
            search=config.search.names,
            validation_images=inputs.summary.images["validation"],
            identity=identity.to_dict(),
        )
        if ledger.start is None:
            ledger.started_with([recipe.to_dict() for recipe in inputs.start.recipes])
        strategy = build_strategy(
            config.search,
            study_path=folder.study,
            sweep_id=sweep_id,
            space=inputs.space,
            ranges=config.space.ranges,
            problem=inputs.problem,
            seed=config.seed,
            chance=Chance.of(
                inputs.summary.class_counts["validation"], min_peers=config.search.min_peers
            ),
            budget=config.budget,
            start=inputs.start.recipes,
        )
        strategy.sampler.reconcile(ledger.trials())
        driver = Driver(
            ledger=ledger,
            strategy=strategy,
            keeper=CheckpointKeeper(ledger, folder.trials_uri),
            budget=config.budget,
            levels=levels,
            seed=config.seed,
            max_failures=config.resources.max_failures,
            confirm=config.search.confirm,
        )
        setting = self._setting(identity)
        gpus = gpu_shares(
            config.resources,
            recipe=dense(inputs.recipe(0), resolution=inputs.problem.native_resolution),
            source=inputs.backbone.source,
            classes=len(inputs.summary.class_names),
        )
        tracker = tracker_for(config.tracking, folder)
        tracker.start(lambda: self._snapshot(ledger))
        tables = TableWriter(ledger, storage)
        tables.start()
        progress = Progress(
            ledger,
            name=config.name,
            budget=config.budget,
            reference_flops=levels[-1],
            console=self._console,
        )
        try:
            with progress:
                run_trials(
                    driver,
                    setting,
                    config.resources,
                    folder=folder.tune,
                    gpus=gpus,
                    on_step=progress.update,
                )
            if driver.hopeless:
                *_, last = (trial.reason for trial in ledger.trials() if trial.reason)
                raise InputError(
                    f"Every trial failed, the last with {last}; mend the cause and run the same "
                    "command with --fresh."
                )
            self._test_frontier(ledger, setting)
            self._over = True
            tables.write()
            self._write_views(ledger, tracker, inputs.summary.class_names)
        finally:
            caught_up = tracker.close(timeout_seconds=CATCH_UP_SECONDS)
            shutil.rmtree(folder.exports, ignore_errors=True)
            journal.close()
            tables.close()  # last, because it raises if the disk is full
        if not caught_up:
            self._console.print(
                "[yellow]MLflow is not up to date; the same command will catch up.[/]"
            )
        return ledger.frontier

    def _check_unchanged(self) -> None:
        """Refuses to go on with a sweep under another task, backbone, space, seed or grid."""
        if not self._folder.config.is_file():
            return
        before = read_config(SweepConfig, self._folder.config)
        mend = "run with --fresh to start over, or choose another name"
        for part in FIXED:
            if getattr(before, part) != getattr(self._config, part):
                raise InputError(
                    f"The sweep in {self._folder.root} was started with another {part}; {mend}."
                )
        levels, had = self._config.rungs.levels(), before.rungs.levels()
        if levels[: len(had)] != had:
            raise InputError(
                f"The sweep in {self._folder.root} was started with other rungs, and only "
                f"rungs.max_flops may be raised; {mend}."
            )

    def _keep_search(self) -> None:
        """Has a sweep that has begun go on with its sampler and scheduler where auto is asked for.

        They are in the journal, or, where an older prunetune began it, in its config.
        """
        names = recorded_search(Journal(self._folder.storage(), "journal"))
        if names is None:
            return
        if not names and self._folder.config.is_file():
            names = read_begun(self._folder.config).search.names
        search = self._config.search.going_on(names or BEFORE_AUTO)
        self._config = self._config.model_copy(update={"search": search})

    def _setting(self, identity: Identity) -> TrialSetting:
        task, source = self._config.task, self._config.source_task
        return TrialSetting(
            backbone=self._config.backbone,
            task=task.to_source(),
            store_resolution=task.resolution,
            source_task=source.to_source() if source else None,
            source_resolution=source.resolution if source else task.resolution,
            mirror=task.mirror,
            levels=self._config.rungs.levels(),
            cache=self._config.storage.cache,
            trials_uri=self._folder.trials_uri,
            threads=self._config.resources.cpus,
            task_digest=identity.task,
            source_task_digest=identity.source_task,
            weights_digest=identity.weights,
        )

    def _test_frontier(self, ledger: Ledger, setting: TrialSetting) -> None:
        """Measures the test error of the frontier's points that lack one.

        On the cluster, unless that is this machine alone: fresh workers would take longer to
        start than the driver, which has everything loaded, takes for the work.
        """
        untested = [point for point in ledger.frontier.points if point.test_error is None]
        uris = [checkpoint_of(point, self._folder) for point in untested]
        if sum(node["Alive"] for node in ray.nodes()) == 1:
            errors = [measure_test_error(setting.to_dict(), uri) for uri in uris]
        else:
            resources = self._config.resources
            remote = ray.remote(measure_test_error).options(
                num_cpus=resources.cpus, num_gpus=1 if resources.gpus == "auto" else resources.gpus
            )
            errors = ray.get([remote.remote(setting.to_dict(), uri) for uri in uris])
        for point, error in zip(untested, errors, strict=True):
            ledger.tested(point.trial_id, point.rung, test_error=error)

    def _write_views(self, ledger: Ledger, tracker: Tracker, class_names: tuple[str, ...]) -> None:
        """The report, the figure and the frontier's models, in the folder and in MLflow."""
        if not ledger.frontier.points:
            return
        storage = self._folder.storage()
        write_report(self._folder.root, self._folder.report, tables=storage)
        save(plot_frontier(read_measurements(storage)), self._folder.figure)
        tracker.attach_files(self._folder.report, self._folder.figure)
        shutil.rmtree(self._folder.exports, ignore_errors=True)
        for point in ledger.frontier.points:
            folder = self._folder.exports / f"{point.trial_id}-rung-{point.rung}"
            write_model(
                point, folder, sweep=self._folder, config=self._config, class_names=class_names
            )
            tracker.attach_model(point, folder)

    def _snapshot(self, ledger: Ledger) -> Snapshot:
        trials, frontier = ledger.trials_and_frontier()
        assert ledger.sweep_id is not None
        reference = self._config.rungs.levels()[-1]
        return Snapshot(
            sweep_id=ledger.sweep_id,
            name=self._config.name,
            config=self._config.model_dump(mode="json"),
            trials=trials,
            frontier=frontier,
            sweep_flops=ledger.sweep_flops,
            hypervolume=frontier.hypervolume(reference_flops=reference),
            elapsed_seconds=ledger.elapsed_seconds,
            finished=self._over,
        )
