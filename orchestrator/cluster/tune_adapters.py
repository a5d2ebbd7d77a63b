"""Tune's side of the driver: thin classes that pass its calls on and hold no state of a sweep."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Self

from ray import cloudpickle, tune
from ray.exceptions import RayActorError, RayTaskError
from ray.tune import PlacementGroupFactory
from ray.tune.experiment import Trial
from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

from orchestrator.search.driver import Driver, Idle
from orchestrator.search.strategy import Decision
from search_spaces.recipe import Recipe
from trainables.measurement import Report


def sized(trainable: type[tune.Trainable], *, cpus: int) -> type[tune.Trainable]:
    """The trainable, taking so many CPUs and, of the GPUs, what its trial's config says.

    Tune keeps a finished trial's actor for the next one that takes as much.
    """

    def request(config: Mapping[str, Any]) -> PlacementGroupFactory:
        return PlacementGroupFactory([{"CPU": cpus, "GPU": config["gpus"]}])

    wrapped: type[tune.Trainable] = tune.with_resources(trainable, request)
    return wrapped


class _Unsaved:
    """Tune pickles its parts for a restore that is never made: they leave their state out."""

    def __getstate__(self) -> dict[str, Any]:
        return {}

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self


class DriverSearcher(_Unsaved, Searcher):
    """Gives Tune the driver's next trial."""

    def __init__(
        self, driver: Driver, setting: Mapping[str, Any], *, gpus: Callable[[Recipe], float]
    ) -> None:
        """`gpus` says what a trial takes of them."""
        super().__init__()
        self._driver = driver
        self._setting = setting
        self._gpus = gpus

    def suggest(  # type: ignore[override]  # ray's annotation forgets Searcher.FINISHED
        self, trial_id: str
    ) -> dict[str, Any] | str | None:
        trial = self._driver.next_trial()
        if trial is Idle.WAIT:
            return None
        if trial is Idle.FINISHED:
            finished: str = Searcher.FINISHED
            return finished
        assert not isinstance(trial, Idle)
        return {
            "trial_id": trial.trial_id,
            "continues": trial.continues,
            "recipe": trial.recipe.to_dict(),
            "seed": trial.seed,
            "setting": self._setting,
            "gpus": self._gpus(trial.recipe),
        }

    def on_trial_complete(
        self,
        trial_id: str,
        result: dict[str, Any] | None = None,
        error: bool = False,  # noqa: FBT001  # ray's signature
    ) -> None:
        """Nothing: the scheduler has told the driver."""

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the journal has it all, and Tune's own snapshot is never restored."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing, likewise."""


class DriverScheduler(_Unsaved, FIFOScheduler):
    """Hands every report to the driver and does as it decides."""

    def __init__(self, driver: Driver) -> None:
        FIFOScheduler.__init__(self)
        self._driver = driver

    def on_trial_result(self, controller: Any, trial: Trial, result: dict[str, Any]) -> str:
        report = Report.from_json(result["report"])
        decision = self._driver.report(trial.config["trial_id"], report)
        # To Tune a paused trial is over: the driver hands it out again as a new one of Tune's.
        stop: str = TrialScheduler.STOP
        go_on: str = TrialScheduler.CONTINUE
        return go_on if decision is Decision.CONTINUE else stop

    def on_trial_error(self, controller: Any, trial: Trial) -> None:
        """Every failure is final to Tune, which cannot recover a trial that is lost while a
        reused actor is reset for it: the driver hands it out again as a new one of Tune's."""
        error = _error(trial)
        self._driver.failed(
            trial.config["trial_id"],
            reason=_reason(error),
            preempted=isinstance(error, RayActorError) and error.preempted,
        )


class DriverCallback(_Unsaved, tune.Callback):
    """Tells `on_step` that something may have changed."""

    def __init__(self, on_step: Callable[[], None]) -> None:
        self._on_step = on_step

    def on_step_end(self, iteration: int, trials: list[Trial], **info: Any) -> None:
        self._on_step()


def _error(trial: Trial) -> Exception | None:
    """The error that a trial raised, or that tells how it was lost.

    Read where Tune has just put it: `Trial.get_error` reads from where it is copied to later.
    """
    path = trial.pickled_error_file
    if path is None:
        return None
    error: Exception = cloudpickle.loads(Path(path).read_bytes())
    return error.cause if isinstance(error, RayTaskError) else error


def _reason(error: Exception | None) -> str:
    """One line saying why a trial raised or was lost."""
    if isinstance(error, RayActorError):
        return f"its worker was lost: {' '.join(str(error).split())[:300]}"
    lines = str(error).strip().splitlines() or ["no message"]
    return f"{type(error).__name__}: {lines[-1][:300]}"
