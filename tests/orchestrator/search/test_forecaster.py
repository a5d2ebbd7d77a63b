"""The forecaster: when it makes a forecast anew, of what, and on whose time."""

import threading
from collections.abc import Iterator

import pytest
from optuna.distributions import FloatDistribution, distribution_to_json

from orchestrator.search import forecaster as forecasting
from orchestrator.search.field import Field
from orchestrator.search.forecaster import FEWEST, MOST, Forecaster
from orchestrator.store.ledger import TrialRecord, TrialState
from tests.orchestrator.fake_trials import LEVELS, measurement, record
from tests.waiting import wait_until

RATE = '{"name": "FloatDistribution", "attributes": {"low": 0.0, "high": 1.0, "step": null, '
RATE += '"log": false}}'


def trial(number: int, *, rungs: int = 1, loss: float = 1.0) -> TrialRecord:
    rate = (number * 37 % 100) / 100
    return record(
        number,
        params={"rate": rate},
        distributions={"rate": RATE},
        state=TrialState.COMPLETE,
        measurements=tuple(
            measurement(rung, 0.2 + 0.6 * rate / (1 + rung), val_loss=loss) for rung in range(rungs)
        ),
    )


def field_of(*trials: TrialRecord) -> Field:
    return Field(LEVELS, lambda rung: {}, trials)


def expected(forecaster: Forecaster) -> list[float]:
    assert forecaster.forecast is not None
    logits = forecaster.forecast.logits([{"rate": 0.1}, {"rate": 0.9}], LEVELS)
    return [float(value) for value in logits.ravel()]


@pytest.fixture(autouse=True)
def no_thread_stays() -> Iterator[None]:
    yield
    wait_until(lambda: not making(), what="the forecast's thread has ended")


def making() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "forecast"]


def learnt(forecaster: Forecaster, field: Field) -> None:
    """Has it learn until what it has begun is done."""
    forecaster.learn(field)
    wait_until(lambda: not making(), what="the forecast is made")
    forecaster.learn(field)


def test_with_a_growth_of_one_a_forecast_depends_on_the_field_alone() -> None:
    trials = [trial(number) for number in range(30)]
    steady, restarted = (Forecaster(seed=0, growth=1.0) for _ in range(2))
    field = field_of()
    for new in trials:
        field.update(new)
        steady.learn(field)
    restarted.learn(field_of(*trials))
    assert expected(steady) == expected(restarted)


def test_with_a_growth_of_one_a_trial_that_diverged_unmeasured_counts_at_once() -> None:
    trials = [trial(number) for number in range(20)]
    forecaster = Forecaster(seed=0, growth=1.0)
    forecaster.learn(field_of(*trials))
    before = expected(forecaster)
    lost = record(20, params={"rate": 0.5}, distributions={"rate": RATE}, state=TrialState.DIVERGED)
    forecaster.learn(field_of(*trials, lost))
    assert expected(forecaster) != before


def test_nothing_new_makes_no_new_forecast() -> None:
    forecaster = Forecaster(seed=0, growth=1.0)
    field = field_of(*(trial(number) for number in range(20)))
    forecaster.learn(field)
    before = forecaster.forecast
    forecaster.learn(field)
    assert forecaster.forecast is before


def test_the_last_forecast_serves_until_the_thread_has_made_the_next() -> None:
    forecaster = Forecaster(seed=0, background=True)
    few, many = [trial(n) for n in range(20)], [trial(n) for n in range(300)]
    forecaster.learn(field_of(*few))
    first = forecaster.forecast
    assert first is not None, "the first is made at once"
    field = field_of(*many)
    forecaster.learn(field)
    assert forecaster.forecast is first
    learnt(forecaster, field)
    whole = Forecaster(seed=0)
    whole.learn(field)
    assert expected(forecaster) == expected(whole)


def test_there_are_never_two_forecasts_in_the_making(monkeypatch: pytest.MonkeyPatch) -> None:
    slow, make = threading.Event(), forecasting._forecast
    made: list[int] = []

    def made_slowly(trials: tuple[TrialRecord, ...], *, seed: int) -> object:
        if made:
            slow.wait()
        made.append(len(trials))
        return make(trials, seed=seed)

    monkeypatch.setattr(forecasting, "_forecast", made_slowly)
    forecaster = Forecaster(seed=0, background=True)
    field = field_of(*(trial(number) for number in range(10)))
    forecaster.learn(field)
    for number in range(10, 60):
        field.update(trial(number))
        forecaster.learn(field)
        assert len(making()) <= 1
    slow.set()
    learnt(forecaster, field)
    wait_until(lambda: not making(), what="the forecast is made")
    assert made == [10, 12, 60], "what came meanwhile is in the next"


def test_what_goes_wrong_in_the_thread_reaches_the_next_to_ask_once() -> None:
    forecaster = Forecaster(seed=0, background=True)
    forecaster.learn(field_of(*(trial(number) for number in range(20))))
    first = forecaster.forecast
    broken = [trial(number) for number in range(39)]
    broken.append(trial(39))
    wrong = record(
        40,
        params={"temperature": 1e300},  # more than a forest of single precision holds
        distributions={"temperature": distribution_to_json(FloatDistribution(0.0, 1e300))},
        state=TrialState.COMPLETE,
        measurements=(measurement(0, 0.5),),
    )
    field = field_of(*broken, wrong)
    forecaster.learn(field)
    wait_until(lambda: not making(), what="the thread has failed")
    with pytest.raises((ValueError, RuntimeWarning), match="too large|overflow"):
        forecaster.learn(field)
    assert forecaster.forecast is first
    forecaster.learn(field)  # not before there is more


def test_a_sample_has_those_that_went_furthest_and_some_of_all() -> None:
    trials = [trial(number, rungs=1 + 3 * (number % 100 == 0)) for number in range(3 * MOST)]
    sample = forecasting._sample(trials)
    assert len(sample) == MOST
    assert {t.number for t in trials if len(t.measurements) == 4} <= {t.number for t in sample}
    assert [t.number for t in sample] == sorted({t.number for t in sample})
    assert sample[0].number < MOST / 4


def test_few_points_make_no_forecast() -> None:
    forecaster = Forecaster(seed=0)
    forecaster.learn(field_of(*(trial(number) for number in range(FEWEST - 1))))
    assert not forecaster.ready
    infinite = [trial(number, loss=float("inf")) for number in range(2 * FEWEST)]
    forecaster.learn(field_of(*infinite))
    assert not forecaster.ready
