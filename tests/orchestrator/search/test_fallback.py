"""A forecast that fails is given up, which is said once, and the sweep goes on without it."""

import time
from dataclasses import replace
from pathlib import Path
from threading import Event
from typing import Any

import pytest
from optuna.distributions import FloatDistribution, distribution_to_json

from orchestrator.search import fallback
from orchestrator.search.config import Budget
from orchestrator.search.fallback import DispensableForecaster
from orchestrator.search.field import Field
from orchestrator.store.ledger import TrialRecord, TrialState
from search_spaces.problem import Problem
from search_spaces.recipe import Recipe
from search_spaces.space import Trial
from tests.orchestrator.fake_trials import LEVELS, measurement, record
from tests.orchestrator.search.rehearsals import rehearsal
from tests.orchestrator.search.test_auto import any_recipe
from tests.orchestrator.search.test_forecaster import field_of, trial

TRIALS = 30


def astronomic(trial: Trial, problem: Problem) -> Recipe:
    """A user's space with a parameter that no forest of single precision can hold."""
    trial.suggest_float("temperature", 1e200, 1e300)
    rung = trial.suggest_int("target_rung", 0, len(problem.rungs) - 1)
    return any_recipe(trial, target_flops=problem.rungs[rung])


def test_a_sweep_goes_on_without_a_forecast_that_fails(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    swept = rehearsal(tmp_path, space=astronomic, budget=Budget(trials=TRIALS), startup_trials=4)
    outlook = swept.run()
    assert len(swept.ledger) == TRIALS
    assert sum(rung.raised for rung in outlook.rungs) > 3
    (said,) = [record.message for record in caplog.records]
    assert said.startswith("The forecast of learning curves is given up (")
    assert "the race goes by errors alone, and the sampler is tpe" in said


def test_the_recipes_are_then_those_of_tpe(tmp_path: Path) -> None:
    """They are the same from the first on: the model draws at random until it has a forecast."""
    fallen = rehearsal(tmp_path / "a", space=astronomic, budget=Budget(trials=TRIALS))
    tpe = rehearsal(tmp_path / "b", space=astronomic, budget=Budget(trials=TRIALS), sampler="tpe")
    fallen.run()
    tpe.run()
    rates = [[t.recipe.learning_rate for t in s.ledger.trials()] for s in (fallen, tpe)]
    assert rates[0][-10:] == rates[1][-10:]


def test_what_takes_too_long_is_given_up(caplog: pytest.LogCaptureFixture) -> None:
    forecaster = DispensableForecaster(seed=0)
    with forecaster.watched(1.0):
        pass
    assert not forecaster.given_up
    for _ in range(2):
        with forecaster.watched(0.01):
            time.sleep(0.02)
    assert forecaster.given_up
    assert not forecaster.ready
    (said,) = [record.message for record in caplog.records]
    assert "seconds and may take 0.01): from here on" in said


class Waiting(dict[str, Any]):
    """The values of a recipe, which are not to be had until something has happened."""

    def __init__(self, values: dict[str, Any], happened: Event) -> None:
        super().__init__(values)
        self._happened = happened

    def __getitem__(self, name: str) -> Any:
        self._happened.wait()
        return super().__getitem__(name)


def test_a_thread_that_never_ends_is_given_up(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    forecaster, happened = DispensableForecaster(seed=0, background=True), Event()
    trials = [ended(number) for number in range(20)]
    forecaster.learn(Field(LEVELS, lambda rung: {}, trials))
    assert forecaster.ready
    stuck = [replace(trial, params=Waiting(dict(trial.params), happened)) for trial in trials]
    field = Field(LEVELS, lambda rung: {}, [*stuck, *(ended(number) for number in range(20, 40))])
    try:
        forecaster.learn(field)
        assert forecaster.ready, "the last one serves"
        monkeypatch.setattr(fallback, "FIT_SECONDS", 0.01)
        time.sleep(0.02)
        forecaster.learn(field)
    finally:
        happened.set()
    assert forecaster.given_up
    assert len(caplog.records) == 1


def ended(number: int) -> TrialRecord:
    """A trial of a recipe with one value."""
    return record(
        number,
        params={"rate": number / 40},
        distributions={"rate": distribution_to_json(FloatDistribution(0.0, 1.0))},
        state=TrialState.COMPLETE,
        measurements=(measurement(0, 0.2 + number / 100),),
    )


def unlearnable(number: int) -> TrialRecord:
    """A trial with a value that no forest of single precision can hold."""
    return replace(
        trial(number),
        params={"temperature": 1e300},
        distributions={"temperature": distribution_to_json(FloatDistribution(0.0, 1e300))},
    )


def test_a_repeatable_one_takes_its_time_and_fails_by_the_field_alone(
    caplog: pytest.LogCaptureFixture,
) -> None:
    forecaster = DispensableForecaster(seed=0, growth=1.0, repeatable=True)
    field = field_of(*(trial(number) for number in range(20)))
    forecaster.learn(field)
    with forecaster.watched(0.01):
        time.sleep(0.02)
    with forecaster.watched(1.0):
        raise RuntimeError("what was asked is too much")
    assert forecaster.ready
    field.update(unlearnable(20))
    for _ in range(2):
        forecaster.learn(field)
        assert forecaster.given_up, "until the field has grown"
    forecaster.learn(field_of(*(trial(number) for number in range(30))))
    assert forecaster.ready
    assert len(caplog.records) == 1, "it is said once"
