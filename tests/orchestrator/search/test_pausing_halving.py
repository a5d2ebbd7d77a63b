"""Pausing halving: numbers in, verdicts and promotions out."""

from collections.abc import Mapping

import pytest

from orchestrator.search.pausing_halving import PausingHalving
from orchestrator.search.strategy import GO_ON, Decision, ErrorsAt, Verdict
from orchestrator.store.ledger import TrialRecord, TrialState
from tests.orchestrator.fake_trials import measurement, record
from tests.orchestrator.search.standings import standing

PAUSE = Verdict(decision=Decision.PAUSE)
AT = {
    0: {"t0": 0.9, "t1": 0.3, "t2": 0.4, "t3": 0.2, "t4": 0.5, "t5": 0.6},
    1: {"t1": 0.25, "t3": 0.1},
}
"""Errors by rung and trial."""


def always(errors: Mapping[str, float]) -> ErrorsAt:
    """The same errors, whatever the rung."""
    return lambda rung: errors


def paused(number: int) -> TrialRecord:
    """The trial as its errors say."""
    curve = tuple(
        measurement(rung, errors[f"t{number}"])
        for rung, errors in AT.items()
        if f"t{number}" in errors
    )
    return record(number, state=TrialState.PAUSED, measurements=curve)


def resumed(*numbers: int, factor: float = 2) -> int | None:
    trials = [paused(number) for number in numbers]
    trial = PausingHalving(reduction_factor=factor).resume(trials, lambda rung: AT[rung])
    return trial.number if trial else None


@pytest.mark.parametrize(
    ("arrivals", "expected"),
    [
        ([0.5], [PAUSE]),  # alone it is better than nobody
        ([0.5, 0.4], [PAUSE, GO_ON]),
        ([0.4, 0.5], [PAUSE, PAUSE]),
        ([0.5, 0.4, 0.6, 0.3], [PAUSE, GO_ON, PAUSE, GO_ON]),
    ],
)
def test_who_arrives_among_the_best_half_trains_on(
    arrivals: list[float], expected: list[Verdict]
) -> None:
    race = PausingHalving(reduction_factor=2)
    verdicts = [race.judge(standing(e, arrivals[: n + 1])) for n, e in enumerate(arrivals)]
    assert verdicts == expected


def test_the_best_of_the_highest_rung_goes_on_first() -> None:
    assert resumed(0, 1, 2, 3) == 3, "t3 leads rung 1"
    assert resumed(0, 1, 2) == 2, "t1 is behind t3 at rung 1, and of rung 0 t2 is third of six"
    assert resumed(0, 1) is None, "t0 is last"


def test_places_come_with_arrivals() -> None:
    race = PausingHalving(reduction_factor=3)
    trial = record(0, state=TrialState.PAUSED, measurements=(measurement(0, 0.3),))
    for others in range(5):
        errors = {"t0": 0.3, **{f"t{n + 1}": 0.9 for n in range(others)}}
        expected = trial if len(errors) >= 3 else None
        assert race.resume([trial], always(errors)) is expected


def test_the_first_suggested_of_equals_goes_on() -> None:
    trials = [record(n, measurements=(measurement(0, 0.3),)) for n in (0, 1)]
    race = PausingHalving(reduction_factor=2)
    errors = {"t0": 0.3, "t1": 0.3, "t2": 0.5}
    assert race.resume(trials, always(errors)) is trials[0]


def test_an_error_that_is_not_finite_never_goes_on() -> None:
    nan = float("nan")
    trial = record(0, measurements=(measurement(0, nan),))
    race = PausingHalving(reduction_factor=2)
    assert race.judge(standing(nan, [nan, 0.9, 0.9, 0.9])) == PAUSE
    assert race.resume([trial], always({"t0": nan, "t1": 0.9, "t2": 0.9})) is None


@pytest.mark.parametrize("factor", [1, 0.5, float("nan")])
def test_a_factor_that_halves_nothing_is_refused(factor: float) -> None:
    with pytest.raises(ValueError, match=r"reduction_factor=.* must be above 1"):
        PausingHalving(reduction_factor=factor)
