"""A sweep from its config to its frontier."""

import logging
import os
import secrets
import shutil
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import ray
from ray import tune
from ray.tune import TuneError
from rich.console import Console

from analysis.frontier import Frontier, FrontierPoint
from analysis.plots import plot_frontier, save
from analysis.report import write_report
from analysis.table import read_measurements
from orchestrator.card import model_card
from orchestrator.cluster.gpu_shares import gpu_shares
from orchestrator.cluster.resources import concurrent_trials, connect, image_cache
from orchestrator.cluster.tune_adapters import (
    DriverCallback,
    DriverScheduler,
    DriverSearcher,
    sized,
)
from orchestrator.config import SweepConfig, read_config, to_yaml
from orchestrator.doctor import Examination, tracker_for
from orchestrator.search.chance import Chance
from orchestrator.search.driver import Budget, Driver
from orchestrator.search.halving import Halving
from orchestrator.search.sampler import FrontierSampler
from orchestrator.store.folder import SweepFolder
from orchestrator.store.journal import Journal
from orchestrator.store.ledger import Ledger
from orchestrator.store.retention import CheckpointKeeper
from orchestrator.store.tables import TableWriter
from orchestrator.terminal.progress import Progress
from orchestrator.tracking.tracker import Snapshot, Tracker
from search_spaces.recipe import Recipe
from trainables.checkpoints import checkpoint_folder
from trainables.errors import InputError
from trainables.export import export_model
from trainables.trial import TransferTrial, TrialSetting, measure_test_error

CATCH_UP_SECONDS = 60.0
"""How long the end of a sweep waits for a tracking server that is away."""
FIXED = ("seed", "task", "source_task", "backbone", "space")
"""Parts of the config that may not change over a sweep's life."""


class Sweep:
    """The trials run to find one task's frontier.

    `run` starts it, resumes it, or, if the budget was raised since, extends it.
    """

    def __init__(self, config: SweepConfig, *, console: Console | None = None) -> None:
        self._config = config
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
            self._console.print("[dim]checking the config …[/]")
            examination = Examination(self._config)
            examination.run()
            started_ray = connect(self._config.ray.address)
            try:
                if fresh:
                    self._clear()
                self._folder.keep_config(to_yaml(self._config))
                return self._run(examination)
            finally:
                if started_ray:
                    ray.shutdown()

    def _clear(self) -> None:
        self._folder.clear()
        if self._config.tracking.uri is None:  # a server's experiment has others' sweeps too
            tracker_for(self._config, self._folder).discard()

    def _run(self, examination: Examination) -> Frontier:
        config, folder = self._config, self._folder
        levels = config.rungs.levels()
        storage = folder.storage()
        journal = Journal(storage, "journal")
        ledger = Ledger(journal)
        ledger.open(sweep_id=ledger.sweep_id or f"{config.name}-{secrets.token_hex(4)}")
        assert ledger.sweep_id is not None
        sampler = FrontierSampler(
            study_path=folder.study,
            sweep_id=ledger.sweep_id,
            space=examination.space,
            ranges=config.space.ranges,
            problem=examination.problem,
            seed=config.seed,
            startup_trials=config.search.startup_trials,
        )
        sampler.reconcile(ledger.trials())
        keeper = CheckpointKeeper(ledger, folder.trials_uri)
        keeper.tidy()
        budget = Budget(
            trials=config.budget.trials,
            sweep_flops=config.budget.sweep_flops,
            wall_seconds=config.budget.wall_time,
        )
        driver = Driver(
            ledger=ledger,
            sampler=sampler,
            chance=Chance.of(
                examination.summary.class_counts["validation"], min_peers=config.search.min_peers
            ),
            halving=self._halving(),
            keeper=keeper,
            budget=budget,
            levels=levels,
            seed=config.seed,
            generation=config.search.generation,
            max_failures=config.resources.max_failures,
        )
        setting = self._setting()
        gpus = gpu_shares(config.resources, examination)
        tracker = tracker_for(config, folder)
        tracker.start(lambda: self._snapshot(ledger))
        tables = TableWriter(ledger, storage)
        tables.start()
        progress = Progress(
            ledger,
            name=config.name,
            budget=budget,
            reference_flops=levels[-1],
            console=self._console,
        )
        try:
            with progress:
                self._tune(driver, setting, gpus=gpus, on_step=progress.update)
            if driver.hopeless:
                *_, last = (trial.reason for trial in ledger.trials() if trial.reason)
                raise InputError(
                    f"Every trial failed, the last with {last}; mend the cause and run the same "
                    "command with --fresh."
                )
            self._test_frontier(ledger, setting)
            self._over = True
            tables.write()
            self._write_views(ledger, tracker, examination.summary.class_names)
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

    def _halving(self) -> Halving | None:
        search = self._config.search
        if search.reduction_factor is None:
            return None
        return Halving(reduction_factor=search.reduction_factor, min_peers=search.min_peers)

    def _setting(self) -> TrialSetting:
        task, source = self._config.task, self._config.source_task
        return TrialSetting(
            backbone=self._config.backbone.to_source(),
            task=task.to_source(),
            store_resolution=task.resolution,
            source_task=source.to_source() if source else None,
            source_resolution=source.resolution if source else task.resolution,
            mirror=task.mirror,
            levels=self._config.rungs.levels(),
            cache=str(image_cache(self._config.storage.cache)),
            trials_uri=self._folder.trials_uri,
            threads=self._config.resources.cpus,
        )

    def _tune(
        self,
        driver: Driver,
        setting: TrialSetting,
        *,
        gpus: Callable[[Recipe], float],
        on_step: Callable[[], None],
    ) -> None:
        """Has Tune run trials until the driver has no more."""
        resources = self._config.resources
        concurrent = concurrent_trials(resources)
        shutil.rmtree(self._folder.tune, ignore_errors=True)
        with (
            _environment(
                # One result logger is enough, and Tune's write a file each and flush it per result.
                TUNE_DISABLE_AUTO_CALLBACK_LOGGERS="1",
                # A searcher of one's own would get one pending trial: a cluster could never grow.
                TUNE_MAX_PENDING_TRIALS_PG=str(concurrent),
                # Tune would print a warning about the ways of storing what is never restored.
                RAY_AIR_NEW_OUTPUT="0",
                # An interrupt ends the sweep at once: the same command goes on from the last rungs.
                TUNE_DISABLE_SIGINT_HANDLER="1",
                # The journal has every failure with its reason, and most are mended by a retry.
                TUNE_PRINT_ALL_TRIAL_ERRORS="0",
            ),
            _silenced("ray.tune.tune"),  # which ends by listing the failures once more
            _interrupt_between_steps(on_step) as step,
        ):
            tuner = tune.Tuner(
                sized(TransferTrial, cpus=resources.cpus),
                tune_config=tune.TuneConfig(
                    search_alg=DriverSearcher(driver, setting.to_dict(), gpus=gpus),
                    scheduler=DriverScheduler(driver),
                    num_samples=-1,
                    max_concurrent_trials=concurrent,
                    reuse_actors=True,
                ),
                run_config=tune.RunConfig(
                    name="session",
                    storage_path=str(self._folder.tune),
                    callbacks=[DriverCallback(step)],
                    verbose=0,
                ),
            )
            try:
                tuner.fit()
            except TuneError as error:
                raise _origin(error) from None
            finally:
                shutil.rmtree(self._folder.tune, ignore_errors=True)

    def _test_frontier(self, ledger: Ledger, setting: TrialSetting) -> None:
        """Measures the test error of the frontier's points that lack one.

        On the cluster, unless that is this machine alone: fresh workers would take longer to
        start than the driver, which has everything loaded, takes for the work.
        """
        untested = [point for point in ledger.frontier.points if point.test_error is None]
        uris = [self._checkpoint(point) for point in untested]
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
            export_model(
                self._checkpoint(point),
                folder,
                backbone=self._config.backbone.to_source(),
                class_names=class_names,
                card=model_card(point, self._config),
            )
            tracker.attach_model(point, folder)

    def _checkpoint(self, point: FrontierPoint) -> str:
        return checkpoint_folder(f"{self._folder.trials_uri}/{point.trial_id}", point.rung)

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


def _origin(error: BaseException) -> BaseException:
    """What went wrong on our side of Tune, such as a full disk, from Tune's tale of it."""
    while isinstance(error, TuneError) and (before := error.__cause__ or error.__context__):
        error = before
    return error


@contextmanager
def _environment(**variables: str) -> Iterator[None]:
    """Sets what Tune reads from the environment, for as long as Tune runs."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@contextmanager
def _interrupt_between_steps(on_step: Callable[[], None]) -> Iterator[Callable[[], None]]:
    """`on_step` that also raises `KeyboardInterrupt` if one came since the last step.

    Raised wherever it comes, it may hit a callback of Ray's compiled code, which swallows it.
    """
    interrupted = threading.Event()

    def step() -> None:
        if interrupted.is_set():
            raise KeyboardInterrupt
        on_step()

    if threading.current_thread() is not threading.main_thread():  # no signal comes here
        yield step
        return
    before = signal.signal(signal.SIGINT, lambda *_: interrupted.set())
    try:
        yield step
    finally:
        signal.signal(signal.SIGINT, before)


@contextmanager
def _silenced(logger: str) -> Iterator[None]:
    """Hides a logger's errors."""
    before = logging.getLogger(logger).level
    logging.getLogger(logger).setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logging.getLogger(logger).setLevel(before)
