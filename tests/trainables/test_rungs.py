"""The compute levels, and where a trial stops at them."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainables.errors import InfeasibleError
from trainables.rungs import Stop, plan_stops, rung_levels


def test_levels_are_a_geometric_grid_that_reaches_its_end() -> None:
    levels = rung_levels(min_flops=1e9, max_flops=1e11, per_decade=3)
    assert levels == pytest.approx([1e9 * 10 ** (k / 3) for k in range(7)])
    assert levels[-1] == pytest.approx(1e11)


def test_raising_the_end_only_adds_levels() -> None:
    few = rung_levels(min_flops=3e8, max_flops=2e9, per_decade=4)
    more = rung_levels(min_flops=3e8, max_flops=7e12, per_decade=4)
    assert more[: len(few)] == few
    assert len(more) > len(few)


def test_one_level_is_enough() -> None:
    assert rung_levels(min_flops=5e9, max_flops=5e9, per_decade=3) == (5e9,)
    assert rung_levels(min_flops=5e9, max_flops=1.01e10, per_decade=3) == (5e9,)


@pytest.mark.parametrize(
    ("min_flops", "max_flops", "per_decade", "message"),
    [
        (0, 1, 3, "rungs.min_flops=0 must be positive and at most max_flops=1"),
        (-1, 1, 3, "must be positive"),
        (2e9, 1e9, 3, "rungs.min_flops=2e\\+09 must be positive and at most max_flops=1e\\+09"),
        (math.nan, 1e9, 3, "must be positive"),
        (1e9, 2e9, 0, "rungs.per_decade=0 must be at least 1"),
    ],
)
def test_levels_that_make_no_sense_are_refused(
    min_flops: float, max_flops: float, per_decade: int, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        rung_levels(min_flops=min_flops, max_flops=max_flops, per_decade=per_decade)


def test_stops_by_hand() -> None:
    stops = plan_stops(levels=(10, 20, 40, 80, 160), target_flops=80, setup_flops=15, step_flops=10)
    assert stops == (
        # rung 0 does not even pay for the preparing, rung 1 for no step
        Stop(rung=2, steps=2, train_flops=35),
        Stop(rung=3, steps=6, train_flops=75),
    )


def test_settling_is_kept_back_at_every_level_and_spent_once() -> None:
    stops = plan_stops(
        levels=(10, 20, 40, 80), target_flops=80, setup_flops=9, step_flops=10, settling_flops=6
    )
    assert stops == (
        Stop(rung=2, steps=2, train_flops=35),
        Stop(rung=3, steps=6, train_flops=75),
    )


def test_a_trial_that_needs_no_more_steps_ends_before_its_target() -> None:
    stops = plan_stops(
        levels=(10, 20, 40, 80), target_flops=80, setup_flops=0, step_flops=5, max_steps=6
    )
    assert [(stop.rung, stop.steps) for stop in stops] == [(0, 2), (1, 4), (2, 6)]


def test_levels_closer_than_a_step_are_measured_once() -> None:
    stops = plan_stops(levels=(100, 101, 102, 250), target_flops=250, setup_flops=0, step_flops=100)
    assert [(stop.rung, stop.steps) for stop in stops] == [(0, 1), (3, 2)]


def test_a_target_between_rungs_ends_at_the_lower_one() -> None:
    stops = plan_stops(levels=(10, 20, 40), target_flops=39, setup_flops=0, step_flops=1)
    assert stops[-1] == Stop(rung=1, steps=20, train_flops=20)


def test_a_target_that_lost_a_bit_in_json_still_reaches_its_rung() -> None:
    levels = rung_levels(min_flops=3e8, max_flops=1e12, per_decade=3)
    stops = plan_stops(
        levels=levels, target_flops=levels[5] * (1 - 1e-12), setup_flops=0, step_flops=1e6
    )
    assert stops[-1].rung == 5


@pytest.mark.parametrize(
    ("target", "message"),
    [
        (20, "preparing costs 15 FLOPs and one step 10, more together than the 20 of the highest"),
        (39, "more together than the 20 of the highest rung aimed at"),
        (9, "no rung lies at or under the 9 FLOPs aimed at; the lowest is 10"),
    ],
)
def test_not_even_one_step_is_infeasible_and_the_preparing_is_spent(
    target: float, message: str
) -> None:
    with pytest.raises(InfeasibleError, match=message) as error:
        plan_stops(levels=(10, 20, 40), target_flops=target, setup_flops=15, step_flops=10)
    assert error.value.spent_flops == 15
    assert error.value.needs_flops == 25


def test_what_the_first_step_needs_is_a_level_at_least_and_pays_for_settling() -> None:
    for setup, needs in ((1, 31), (15, 45)):
        with pytest.raises(InfeasibleError) as error:
            plan_stops(
                levels=(31, 40, 80),
                target_flops=30,
                setup_flops=setup,
                step_flops=10,
                settling_flops=20,
            )
        assert error.value.needs_flops == needs


@given(
    min_flops=st.floats(1e6, 1e12),
    decades=st.floats(0, 4),
    per_decade=st.integers(1, 8),
    setup_share=st.floats(0, 3),
    step_share=st.floats(1e-9, 3),
    top=st.integers(0, 40),
)
def test_a_stop_is_the_most_steps_under_its_level(
    min_flops: float,
    decades: float,
    per_decade: int,
    setup_share: float,
    step_share: float,
    top: int,
) -> None:
    levels = rung_levels(
        min_flops=min_flops, max_flops=min_flops * 10**decades, per_decade=per_decade
    )
    setup, step = setup_share * min_flops, step_share * min_flops
    target = levels[min(top, len(levels) - 1)]
    try:
        stops = plan_stops(levels=levels, target_flops=target, setup_flops=setup, step_flops=step)
    except InfeasibleError:
        assert setup + step > target
        return
    for stop in stops:
        assert stop.train_flops == setup + stop.steps * step <= levels[stop.rung] <= target
        assert setup + (stop.steps + 1) * step > levels[stop.rung] * (1 - 1e-9)
    steps = [stop.steps for stop in stops]
    assert steps == sorted(set(steps))
    assert steps[0] >= 1
