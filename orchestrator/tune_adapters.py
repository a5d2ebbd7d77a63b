"""Tune's side of the driver: thin classes that pass its calls on and hold no state of a sweep."""

from collections.abc import Callable, Mapping
from typing import Any, Self

from ray import tune
from ray.exceptions import RayActorError, RayTaskError
from ray.tune.experiment import Trial
from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

from orchestrator.driver import Driver, Idle
from orchestrator.halving import Decision
from trainables.trial import Report


class _Unsaved:
    """Tune pickles its parts for a restore that is never made: they leave their state out."""

    def __getstate__(self) -> dict[str, Any]:
        return {}

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self


class DriverSearcher(_Unsaved, Searcher):
    """Gives Tune the driver's next trial."""

    def __init__(self, driver: Driver, setting: Mapping[str, Any]) -> None:
        super().__init__()
        self._driver = driver
        self._setting = setting

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
            "recipe": trial.recipe.to_dict(),
            "seed": trial.seed,
            "setting": self._setting,
        }

    def on_trial_complete(
        self,
        trial_id: str,
        result: dict[str, Any] | None = None,
        error: bool = False,  # noqa: FBT001, FBT002  # ray's signature
    ) -> None:
        """Nothing: the scheduler has told the driver."""

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the journal has it all, and Tune's own snapshot is never restored."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing, likewise."""


class DriverScheduler(_Unsaved, FIFOScheduler):
    """Hands every report to the driver and does as it decides."""

    def __init__(self, driver: Driver) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._driver = driver

    def on_trial_result(self, controller: Any, trial: Trial, result: dict[str, Any]) -> str:
        report = Report.from_json(result["report"])
        decision = self._driver.report(
            trial.config["trial_id"],
            outcome=report.outcome,
            measurement=report.measurement,
            unmeasured_flops=report.unmeasured_flops,
            reason=report.reason,
        )
        stop: str = TrialScheduler.STOP
        go_on: str = TrialScheduler.CONTINUE
        return go_on if decision is Decision.CONTINUE else stop

    def on_trial_error(self, controller: Any, trial: Trial) -> None:
        self._driver.failed(trial.config["trial_id"], reason=_reason(trial))


class DriverCallback(_Unsaved, tune.Callback):
    """Tells the driver of retries, and `on_step` that something may have changed."""

    def __init__(self, driver: Driver, on_step: Callable[[], None]) -> None:
        self._driver = driver
        self._on_step = on_step

    def on_trial_recover(
        self, iteration: int, trials: list[Trial], trial: Trial, **info: Any
    ) -> None:
        self._driver.restarted(trial.config["trial_id"], reason=_reason(trial))

    def on_step_end(self, iteration: int, trials: list[Trial], **info: Any) -> None:
        self._on_step()


def _reason(trial: Trial) -> str:
    """One line saying why a trial raised or was lost."""
    error = trial.get_error()
    if isinstance(error, RayTaskError):
        error = error.cause
    if isinstance(error, RayActorError):
        return f"its worker was lost: {' '.join(str(error).split())[:300]}"
    lines = str(error).strip().splitlines() or ["no message"]
    return f"{type(error).__name__}: {lines[-1][:300]}"
