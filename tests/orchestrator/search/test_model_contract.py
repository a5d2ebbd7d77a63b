"""The model's sampler is an Optuna sampler like any other: it keeps Optuna's own contract."""

from collections.abc import Callable
from functools import partial
from math import inf, log10
from statistics import mean

import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution
from optuna.samplers import BaseSampler, RandomSampler
from optuna.testing.pytest_samplers import (
    BasicSamplerTestCase,
    MultiObjectiveSamplerTestCase,
    RelativeSamplerTestCase,
)
from optuna.trial import Trial, create_trial

from orchestrator.search.model import FEWEST, ModelSampler

optuna.logging.set_verbosity(optuna.logging.WARNING)


class TestContract(BasicSamplerTestCase, RelativeSamplerTestCase, MultiObjectiveSamplerTestCase):
    """Optuna's own tests, of one objective and of several, of conditional and moving ranges."""

    @pytest.fixture
    def sampler(self) -> Callable[[], BaseSampler]:
        return partial(ModelSampler, seed=0)


def far_from_best(trial: Trial) -> float:
    """The best is a share of 0.7, the kind b and a rate of 0.01, which each kind has its own of."""
    kind = trial.suggest_categorical("kind", ["a", "b"])
    rate = trial.suggest_float(f"rate_{kind}", 1e-4, 1.0, log=True)
    share = trial.suggest_float("share", 0, 1)
    return abs(share - 0.7) + abs(log10(rate) + 2) / 4 + 0.3 * (kind == "a")


def values_of(sampler: BaseSampler, *, sign: int = 1, trials: int = 60) -> list[float]:
    """How far each of a study's trials was from the best."""
    study = optuna.create_study(sampler=sampler, direction="minimize" if sign > 0 else "maximize")
    study.optimize(lambda trial: sign * far_from_best(trial), n_trials=trials)
    return [sign * trial.value for trial in study.trials if trial.value is not None]


@pytest.mark.parametrize("sign", [1, -1])
def test_it_learns_from_one_objective(sign: int) -> None:
    learnt = values_of(ModelSampler(seed=0), sign=sign)[-20:]
    drawn = values_of(RandomSampler(seed=0), sign=sign)[-20:]
    assert mean(learnt) < 0.7 * mean(drawn)


def test_it_learns_from_three_objectives() -> None:
    def objective(trial: Trial) -> tuple[float, float, float]:
        x, y = trial.suggest_float("x", 0, 1), trial.suggest_int("y", 0, 100)
        return x, (1 - x) ** 2 + y / 100, y / 100  # the fewer y the better

    study = optuna.create_study(directions=["minimize"] * 3, sampler=ModelSampler(seed=0))
    study.optimize(objective, n_trials=50)
    assert mean(trial.params["y"] for trial in study.trials[-20:]) < 35, "random ones are at 50"


@pytest.mark.parametrize("worst", [inf, -inf])
def test_infinite_values_are_learnt_from(worst: float) -> None:
    study = optuna.create_study(sampler=ModelSampler(seed=0))
    for number in range(2 * FEWEST):
        x = number / (2 * FEWEST)
        study.add_trial(
            create_trial(
                params={"x": x},
                distributions={"x": FloatDistribution(0, 1)},
                value=worst if x < 0.5 else x,
            )
        )
    drawn = [study.ask({"x": FloatDistribution(0, 1)}).params["x"] for _ in range(20)]
    assert (mean(drawn) < 0.5) is (worst == -inf)


def test_trials_that_violate_a_constraint_are_worst() -> None:
    study = optuna.create_study(sampler=ModelSampler(seed=0))
    for number in range(2 * FEWEST):
        x = number / (2 * FEWEST)
        study.add_trial(
            create_trial(
                params={"x": x},
                distributions={"x": FloatDistribution(0, 1)},
                value=x,
                system_attrs={"constraints": [0.5 - x]},
            )
        )
    drawn = [study.ask({"x": FloatDistribution(0, 1)}).params["x"] for _ in range(20)]
    assert sum(0.4 < x < 0.7 for x in drawn) > 10


def test_a_name_may_be_a_number_here_and_a_word_there() -> None:
    """In a study of trials that were added, where Optuna does not look."""
    study = optuna.create_study(sampler=ModelSampler(seed=0))
    ranges = (
        (FloatDistribution(0, 1), 0.0),
        (FloatDistribution(1e-3, 1, log=True), 0.1),
        (CategoricalDistribution(("a", None, True)), "a"),
        (FloatDistribution(0, 1e300), 1e300),
    )
    for number in range(4 * FEWEST):
        distribution, value = ranges[number % len(ranges)]
        study.add_trial(
            create_trial(params={"x": value}, distributions={"x": distribution}, value=number)
        )
    for distribution, _ in ranges:
        for _ in range(5):
            study.sampler.sample_independent(study, study.trials[-1], "x", distribution)


def test_a_seed_repeats_and_a_reseeded_sampler_does_not() -> None:
    first, second = (values_of(ModelSampler(seed=7), trials=20) for _ in range(2))
    assert first == second
    reseeded = ModelSampler(seed=7)
    reseeded.reseed_rng()
    assert values_of(reseeded, trials=2) != first[:2]


def test_many_threads_may_ask_one_sampler() -> None:
    study = optuna.create_study(sampler=ModelSampler(seed=0))
    study.optimize(far_from_best, n_trials=30, n_jobs=4)
    assert len([trial for trial in study.trials if trial.value is not None]) == 30


def test_one_sampler_serves_one_study_after_the_other() -> None:
    sampler = ModelSampler(seed=0)
    other = optuna.create_study(sampler=sampler)
    for _ in range(FEWEST + 1):
        other.tell(other.ask({"word": CategoricalDistribution(("a", "b"))}), 1.0)
    other.ask({"word": CategoricalDistribution(("a", "b"))})  # and never told
    assert len(values_of(sampler, trials=20)) == 20
