"""A session of Ray Tune: trials run on the cluster until the driver has no more."""

import logging
import os
import shutil
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from ray import tune
from ray.tune import TuneError

from orchestrator.cluster.config import ResourcesConfig
from orchestrator.cluster.resources import concurrent_trials
from orchestrator.cluster.tune_adapters import (
    DriverCallback,
    DriverScheduler,
    DriverSearcher,
    sized,
)
from orchestrator.search.driver import Driver
from search_spaces.recipe import Recipe
from trainables.trial import TransferTrial
from trainables.trial_setting import TrialSetting


def run_trials(
    driver: Driver,
    setting: TrialSetting,
    resources: ResourcesConfig,
    *,
    folder: Path,
    gpus: Callable[[Recipe], float],
    on_step: Callable[[], None],
    trainable: type[tune.Trainable] = TransferTrial,
) -> None:
    """Has Tune run trials until the driver has no more.

    `folder` is for Tune's snapshots, which are removed at the end; `gpus` tells what a trial takes
    of them; `on_step` is called whenever something may have changed. Raises `InputError` when not
    one trial fits, `KeyboardInterrupt`, and what went wrong on our side of Tune.
    """
    concurrent = concurrent_trials(resources)
    shutil.rmtree(folder, ignore_errors=True)
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
            sized(trainable, cpus=resources.cpus),
            tune_config=tune.TuneConfig(
                search_alg=DriverSearcher(driver, setting.to_dict(), gpus=gpus),
                scheduler=DriverScheduler(driver),
                num_samples=-1,
                max_concurrent_trials=concurrent,
                reuse_actors=True,
            ),
            run_config=tune.RunConfig(
                name="session",
                storage_path=str(folder),
                callbacks=[DriverCallback(step)],
                verbose=0,
            ),
        )
        try:
            tuner.fit()
        except TuneError as error:
            raise _origin(error) from None
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def _origin(error: BaseException) -> BaseException:
    """The error that began on our side of Tune, such as a full disk, taken out of Tune's own."""
    while isinstance(error, TuneError) and (before := error.__cause__ or error.__context__):
        error = before
    return error


@contextmanager
def _environment(**variables: str) -> Iterator[None]:
    """Sets what Tune reads from the environment, while Tune runs."""
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
