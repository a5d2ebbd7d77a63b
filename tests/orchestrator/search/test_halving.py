"""Halving: numbers in, decisions out."""

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.search.halving import Halving
from orchestrator.search.strategy import Decision
from orchestrator.store.ledger import TrialState
from tests.orchestrator.search.standings import standing

GO, STOP = Decision.CONTINUE, Decision.STOP
errors = st.floats(0, 1)


def decide(halving: Halving, error: float, peers: list[float]) -> Decision:
    return halving.judge(standing(error, peers)).decision


def decisions(halving: Halving, arrivals: list[float]) -> list[Decision]:
    """The decisions on trials that reach one rung one after another."""
    return [decide(halving, error, arrivals[: place + 1]) for place, error in enumerate(arrivals)]


def test_the_better_half_goes_on() -> None:
    arrivals = [0.5, 0.4, 0.6, 0.3, 0.45, 0.35]
    expected = [GO, GO, STOP, GO, STOP, GO]
    assert decisions(Halving(reduction_factor=2, min_peers=1), arrivals) == expected


def test_a_quarter_goes_on_of_eight() -> None:
    peers = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8]
    halving = Halving(reduction_factor=4, min_peers=1)
    assert [decide(halving, error, peers) for error in peers] == [GO, GO] + 6 * [STOP]


def test_a_fractional_factor_keeps_whole_places() -> None:
    peers = [0.1, 0.2, 0.3, 0.4, 0.5]
    halving = Halving(reduction_factor=1.5, min_peers=1)
    assert [decide(halving, error, peers) for error in peers] == 3 * [GO] + 2 * [STOP]


def test_everyone_goes_on_until_enough_are_measured() -> None:
    arrivals = [0.1, 0.9, 0.8, 0.7, 0.6]
    halving = Halving(reduction_factor=4, min_peers=4)
    assert decisions(halving, arrivals) == [GO, GO, GO, STOP, STOP]


def test_ties_go_on() -> None:
    halving = Halving(reduction_factor=4, min_peers=1)
    assert decide(halving, 0.5, 9 * [0.5]) is GO
    assert decide(halving, 0.5, [0.1, 0.5, 0.5, 0.5, 0.6, 0.7, 0.8, 0.9]) is GO
    assert decide(halving, 0.5, [0.1, 0.2, 0.5, 0.5, 0.6, 0.7, 0.8, 0.9]) is STOP


def test_an_error_that_is_not_finite_stops_and_ranks_worst() -> None:
    halving = Halving(reduction_factor=2, min_peers=3)
    nan, inf = float("nan"), float("inf")
    assert decide(halving, nan, [nan]) is STOP
    assert decide(halving, inf, [inf]) is STOP
    assert decide(halving, 0.9, [nan, inf, 0.9]) is GO
    assert decide(halving, 0.9, [nan, 0.1, 0.9]) is STOP


@given(st.lists(errors, min_size=1, max_size=40), st.floats(1.01, 10), st.integers(1, 10))
def test_the_best_always_goes_on(peers: list[float], factor: float, min_peers: int) -> None:
    halving = Halving(reduction_factor=factor, min_peers=min_peers)
    assert decide(halving, min(peers), peers) is GO


@given(st.lists(errors, min_size=2, max_size=40), st.floats(1.01, 10))
def test_a_better_trial_never_stops_where_a_worse_one_goes_on(
    peers: list[float], factor: float
) -> None:
    halving = Halving(reduction_factor=factor, min_peers=1)
    ordered = [decide(halving, error, peers) for error in sorted(peers)]
    assert ordered == sorted(ordered, key=[GO, STOP].index)


@given(st.lists(errors, min_size=1, max_size=40, unique=True), st.floats(1.01, 10))
def test_no_more_than_the_share_goes_on(peers: list[float], factor: float) -> None:
    halving = Halving(reduction_factor=factor, min_peers=1)
    on = sum(decide(halving, error, peers) is GO for error in peers)
    assert on == 1 or on <= len(peers) / factor < on + 1


@given(st.lists(errors, min_size=1, max_size=20), st.randoms())
def test_the_order_of_arrival_does_not_matter(peers: list[float], random: Random) -> None:
    halving = Halving(reduction_factor=3, min_peers=1)
    before = decide(halving, peers[0], peers)
    shuffled = list(peers)
    random.shuffle(shuffled)
    assert decide(halving, peers[0], shuffled) is before


@pytest.mark.parametrize("factor", [1, 0.5, 0, -2, float("nan"), float("inf")])
def test_a_factor_that_halves_nothing_is_refused(factor: float) -> None:
    with pytest.raises(ValueError, match=r"reduction_factor=.* must be above 1"):
        Halving(reduction_factor=factor, min_peers=1)


@pytest.mark.parametrize("min_peers", [0, -1])
def test_no_peers_are_refused(min_peers: int) -> None:
    with pytest.raises(ValueError, match=r"min_peers=.* must be at least 1"):
        Halving(reduction_factor=2, min_peers=min_peers)


def test_a_trial_that_is_stopped_says_where_others_were_better() -> None:
    halving = Halving(reduction_factor=2, min_peers=1)
    verdict = halving.judge(standing(0.5, [0.5, 0.1], rung=3))
    assert (verdict.state, verdict.reason) == (
        TrialState.HALVED,
        "others were better at rung 3",
    )


def test_a_trial_at_its_end_has_no_race_left() -> None:
    halving = Halving(reduction_factor=2, min_peers=1)
    assert halving.judge(standing(0.5, [0.5, 0.1], over=True)).decision is GO
