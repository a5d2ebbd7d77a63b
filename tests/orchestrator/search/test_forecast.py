"""The forecast, and the sampler that draws what it expects most of."""

import numpy as np
import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution
from optuna.trial import TrialState as StudyState
from optuna.trial import create_trial

from orchestrator.search.field import Field
from orchestrator.search.forecast import Curve, Forecast, carried_on, error_of, logit
from orchestrator.search.forecaster import Forecaster
from orchestrator.search.model import ModelSampler
from orchestrator.store.ledger import TrialRecord, TrialState
from tests.orchestrator.fake_trials import LEVELS, measurement, record

RATE = FloatDistribution(1e-4, 1.0, log=True)
KIND = CategoricalDistribution(("plain", "deep"))
DEPTH = FloatDistribution(0.0, 1.0)


def error(rate: float, flops: float) -> float:
    """A task that likes a rate of 0.01 and compute."""
    return float(min(0.9, 0.1 + 0.15 * abs(np.log10(rate) + 2) + 2e8 / flops))


def params_of(seed: int) -> dict[str, object]:
    rng = np.random.default_rng(seed)
    values: dict[str, object] = {"rate": float(10 ** rng.uniform(-4, 0)), "kind": "plain"}
    return values | ({"kind": "deep", "depth": float(rng.random())} if seed % 2 else {})


def distributions_of(params: dict[str, object]) -> dict[str, optuna.distributions.BaseDistribution]:
    known = {"rate": RATE, "kind": KIND, "depth": DEPTH}
    return {name: known[name] for name in params}


def curve(seed: int, flops: float) -> Curve:
    params = params_of(seed)
    rate = params["rate"]
    assert isinstance(rate, float)
    return Curve(
        params=params,
        distributions=distributions_of(params),
        target_flops=flops,
        points=[(flops, error(rate, flops), 2 * error(rate, flops))],
    )


@pytest.fixture(scope="module")
def forecast() -> Forecast:
    return Forecast([curve(seed, LEVELS[seed % 3]) for seed in range(60)], seed=0)


def test_a_better_recipe_and_more_compute_are_expected_to_err_less(forecast: Forecast) -> None:
    logits = forecast.logits([{"rate": 0.01}, {"rate": 0.5}], LEVELS)
    expected = error_of(logits).mean(axis=0)
    assert logits.shape[1:] == (2, len(LEVELS))
    assert (expected[0] < expected[1]).all()
    assert expected[0][2] < expected[0][0]


def test_the_trend_reaches_beyond_what_was_measured(forecast: Forecast) -> None:
    expected = error_of(forecast.logits([{"rate": 0.01}], (*LEVELS, 1e11))).mean(axis=0)[0]
    assert expected[-1] < expected[2]


def test_equal_curves_and_seeds_make_equal_forecasts() -> None:
    curves = [curve(seed, LEVELS[0]) for seed in range(20)]
    one, other = (Forecast(curves, seed=3).logits([{"rate": 0.1}], LEVELS) for _ in range(2))
    assert (one == other).all()


def test_one_point_is_too_few() -> None:
    with pytest.raises(ValueError, match="1 measured points are too few"):
        Forecast([curve(0, LEVELS[0])], seed=0)


def test_what_a_trial_missed_its_forecast_by_is_carried_on_and_fades() -> None:
    logits = np.zeros((1, 1, 4))
    carried = carried_on(logits, logit(np.array([0.2])), [1])[0, 0]
    assert error_of(carried)[1] == pytest.approx(0.2)
    assert carried[1] < carried[2] < carried[3] < 0


def trial(seed: int) -> TrialRecord:
    params = params_of(seed)
    rate = params["rate"]
    assert isinstance(rate, float)
    texts = {
        name: optuna.distributions.distribution_to_json(known)
        for name, known in distributions_of(params).items()
    }
    return record(
        seed,
        params=params,
        distributions=texts,
        state=TrialState.COMPLETE,
        measurements=(measurement(0, error(rate, LEVELS[0])),),
    )


def learnt(trials: int) -> Forecaster:
    records = [trial(seed) for seed in range(trials)]
    errors = {r.trial_id: r.measurements[0].val_error for r in records}
    forecaster = Forecaster(seed=0)
    forecaster.learn(Field(LEVELS, lambda rung: errors if rung == 0 else {}, records))
    return forecaster


def history(trials: int) -> optuna.Study:
    study = optuna.create_study(directions=["minimize", "minimize"])
    for seed in range(trials):
        params = params_of(seed)
        study.add_trial(
            create_trial(
                state=StudyState.COMPLETE,
                params=params,
                distributions=distributions_of(params),
                values=[0.5, 9.0],
            )
        )
    return study


def drawn(forecaster: Forecaster, past: optuna.Study, seed: int) -> dict[str, object]:
    sampler = ModelSampler(seed=seed, forecaster=forecaster, history=past)
    asked = optuna.create_study(sampler=sampler).ask()
    asked.suggest_float("rate", 1e-4, 1.0, log=True)
    if asked.suggest_categorical("kind", ("plain", "deep")) == "deep":
        asked.suggest_float("depth", 0.0, 1.0)
    return asked.params


def test_few_trials_make_no_forecast_and_random_recipes() -> None:
    forecaster = learnt(3)
    assert not forecaster.ready
    assert {"rate", "kind"} <= set(drawn(forecaster, history(3), seed=0))


def test_recipes_come_near_the_best() -> None:
    forecaster, past = learnt(40), history(40)
    rates = [drawn(forecaster, past, seed)["rate"] for seed in range(20)]
    missed = [abs(np.log10(rate) + 2) for rate in rates if isinstance(rate, float)]
    assert np.median(missed) < 0.5, "random ones miss by 1"


def test_a_draw_depends_on_its_seed_and_the_history_alone() -> None:
    forecaster, past = learnt(20), history(20)
    assert drawn(forecaster, past, 7) == drawn(forecaster, past, 7)


def test_a_value_that_is_no_longer_offered_is_not_handed_out() -> None:
    forecaster, past = learnt(40), history(40)
    for seed in range(10):
        sampler = ModelSampler(seed=seed, forecaster=forecaster, history=past)
        asked = optuna.create_study(sampler=sampler).ask()
        assert asked.suggest_categorical("kind", ("flat",)) == "flat"
        assert 0.5 <= asked.suggest_float("rate", 0.5, 1.0, log=True) <= 1.0
