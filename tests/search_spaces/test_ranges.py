"""Ranges narrow and fix what a space asks for, and refuse what makes no sense."""

import re
from typing import Any

import optuna
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from optuna.trial import FixedTrial

from search_spaces.ranges import InvalidRangeError, RangedTrial


class Asked:
    """A trial that writes down what it was asked and answers with the low end."""

    def __init__(self) -> None:
        self.questions: list[tuple[Any, ...]] = []
        self.number = 7

    def suggest_float(
        self, name: str, low: float, high: float, *, step: float | None = None, log: bool = False
    ) -> float:
        self.questions.append((name, low, high, step, log))
        return low

    def suggest_int(
        self, name: str, low: int, high: int, *, step: int = 1, log: bool = False
    ) -> int:
        self.questions.append((name, low, high, step, log))
        return low

    def suggest_categorical(self, name: str, choices: Any) -> Any:
        self.questions.append((name, tuple(choices)))
        return choices[0]


def ratio(wanted: Any, *, clip: bool = False) -> tuple[float, list[tuple[Any, ...]]]:
    trial = Asked()
    ranged = RangedTrial(trial, {"ratio": wanted}, clip=clip)
    return ranged.suggest_float("ratio", 0.0, 0.95, step=0.05), trial.questions


def rate(wanted: Any, *, clip: bool = False) -> tuple[float, list[tuple[Any, ...]]]:
    trial = Asked()
    ranged = RangedTrial(trial, {"rate": wanted}, clip=clip)
    return ranged.suggest_float("rate", 1e-4, 1e-1, log=True), trial.questions


def size(wanted: Any, *, clip: bool = False) -> tuple[int, list[tuple[Any, ...]]]:
    trial = Asked()
    ranged = RangedTrial(trial, {"size": wanted}, clip=clip)
    return ranged.suggest_int("size", 16, 128, step=16), trial.questions


def criterion(wanted: Any, *, clip: bool = False) -> tuple[Any, list[tuple[Any, ...]]]:
    trial = Asked()
    ranged = RangedTrial(trial, {"criterion": wanted}, clip=clip)
    return ranged.suggest_categorical("criterion", ("l1", "l2", "random")), trial.questions


def test_without_ranges_nothing_changes() -> None:
    trial = Asked()
    ranged = RangedTrial(trial, {})
    ranged.suggest_float("ratio", 0.0, 0.95, step=0.05)
    ranged.suggest_int("size", 16, 128, log=True)
    ranged.suggest_categorical("criterion", ("l1", "l2"))
    assert trial.questions == [
        ("ratio", 0.0, 0.95, 0.05, False),
        ("size", 16, 128, 1, True),
        ("criterion", ("l1", "l2")),
    ]
    assert ranged.names == ("ratio", "size", "criterion")


def test_a_list_of_two_narrows_and_keeps_step_and_scale() -> None:
    assert ratio([0.0, 0.5])[1] == [("ratio", 0.0, 0.5, 0.05, False)]
    assert rate([1e-3, 1e-2])[1] == [("rate", 1e-3, 1e-2, None, True)]
    assert size([32, 64])[1] == [("size", 32, 64, 16, False)]


def test_low_and_high_narrow_and_either_may_be_left_out() -> None:
    assert rate({"low": 1e-3, "high": 1e-2})[1] == [("rate", 1e-3, 1e-2, None, True)]
    assert rate({"low": 1e-3})[1] == [("rate", 1e-3, 1e-1, None, True)]
    assert rate({"high": 1e-3})[1] == [("rate", 1e-4, 1e-3, None, True)]


def test_a_range_moves_inwards_onto_the_grid() -> None:
    assert ratio([0.12, 0.52])[1] == [("ratio", 0.15, 0.5, 0.05, False)]
    assert size([17, 127])[1] == [("size", 32, 112, 16, False)]


@given(st.integers(0, 19), st.integers(0, 19))
def test_every_range_between_grid_points_is_kept_as_it_is(first: int, last: int) -> None:
    low, high = sorted((round(0.05 * first, 2), round(0.05 * last, 2)))
    value, questions = ratio([low, high])
    assert value == low
    assert questions == ([] if low == high else [("ratio", low, high, 0.05, False)])


@given(st.floats(0, 0.95), st.floats(0, 0.95))
def test_any_range_gives_optuna_a_grid_it_accepts(one: float, other: float) -> None:
    """Optuna warns where the ends do not fit the step, and warnings are errors here."""
    low, high = sorted((one, other))
    try:
        _, questions = ratio([low, high])
    except InvalidRangeError:
        return
    for _, inner_low, inner_high, step, _ in questions:
        assert low <= inner_low < inner_high <= high
        optuna.distributions.FloatDistribution(inner_low, inner_high, step=step)


def test_a_scalar_fixes_and_is_not_searched() -> None:
    assert ratio(0.3) == (0.3, [])
    assert rate(1e-2) == (1e-2, [])
    assert size(64) == (64, [])
    assert criterion("l2") == ("l2", [])


def test_a_fixed_value_may_lie_off_the_grid() -> None:
    assert ratio(0.33) == (0.33, [])
    assert size(20) == (20, [])


def test_fixed_values_keep_their_kind() -> None:
    assert isinstance(size(64.0)[0], int)
    assert isinstance(ratio(0)[0], float)


def test_a_list_restricts_choices_in_the_order_of_the_space() -> None:
    assert criterion(["random", "l1"])[1] == [("criterion", ("l1", "random"))]
    assert criterion(["l2"]) == ("l2", [])


def test_true_is_not_one() -> None:
    ranged = RangedTrial(Asked(), {"flag": True})
    with pytest.raises(InvalidRangeError, match="names True, which is not offered"):
        ranged.suggest_categorical("flag", (0, 1, 2))


def test_numbers_that_yaml_reads_as_text_count() -> None:
    ranges = yaml.safe_load("rate: {low: 1e-3, high: 1e-2}")
    assert ranges["rate"]["low"] == "1e-3", "YAML 1.1 wants 1.0e-3"
    assert rate(ranges["rate"])[1] == [("rate", 1e-3, 1e-2, None, True)]


def test_everything_else_is_the_trials() -> None:
    assert RangedTrial(Asked(), {}).number == 7
    trial = FixedTrial({"ratio": 0.5})
    RangedTrial(trial, {}).set_user_attr("note", "mine")
    assert trial.user_attrs == {"note": "mine"}


@pytest.mark.parametrize(
    ("ask", "wanted", "complaint"),
    [
        (ratio, [0.5, 0.2], r"ranges.ratio=[0.5, 0.2] has a low end above its high end; write"),
        (ratio, 1.3, "ranges.ratio=1.3 must lie within [0, 0.95], what the search space offers"),
        (ratio, [0.5, 0.99], "must lie within [0, 0.95]"),
        (ratio, {"low": -0.1}, "must lie within [0, 0.95]"),
        (ratio, [0.11, 0.14], "holds no value of the grid 0, 0.05, ... up to 0.95; widen it"),
        (ratio, [0.1, 0.2, 0.3], "must be a low and a high end"),
        (ratio, [], "must be a low and a high end"),
        (ratio, "much", "must hold numbers, but 'much' is none"),
        (ratio, True, "must hold numbers, but True is none"),
        (ratio, None, "must hold numbers, but None is none"),
        (ratio, float("nan"), "must hold numbers, but nan is none"),
        (ratio, [0.1, float("inf")], "must hold numbers, but inf is none"),
        (ratio, {}, "must have the keys low and high, or one of them."),
        (ratio, {"low": 0.1, "top": 0.2}, "must have the keys low and high, or one of them."),
        (rate, [0, 1e-2], "must lie above 0, because rate is searched on a log scale"),
        (rate, -1, "must lie above 0, because rate is searched on a log scale"),
        (rate, 0.5, "must lie within [0.0001, 0.1]"),
        (size, 32.5, "must hold whole numbers, but 32.5 is none; choose within [16, 128]."),
        (size, [8, 64], "must lie within [16, 128]"),
        (criterion, "l3", "names 'l3', which is not offered; choose among l1, l2, random."),
        (criterion, ["l1", 2], "names 2, which is not offered; choose among l1, l2, random."),
        (criterion, [], "leaves no choice; choose among l1, l2, random."),
        (criterion, {"low": 1}, "must be one choice or a list of choices"),
    ],
)
def test_a_bad_range_gets_one_sentence(ask: Any, wanted: Any, complaint: str) -> None:
    with pytest.raises(InvalidRangeError, match=re.escape(complaint)) as caught:
        ask(wanted)
    message = str(caught.value)
    assert message.startswith("space.ranges.")
    assert message.endswith(".")
    assert "\n" not in message


def test_clip_cuts_what_reaches_past_the_space() -> None:
    assert ratio([0.5, 2.0], clip=True)[1] == [("ratio", 0.5, 0.95, 0.05, False)]
    assert ratio([-1.0, 0.0], clip=True) == (0.0, [])
    assert criterion(["l1", "l2", "taylor"], clip=True)[1] == [("criterion", ("l1", "l2"))]


@pytest.mark.parametrize(
    ("ask", "wanted"),
    [(ratio, 2.0), (ratio, [2.0, 3.0]), (ratio, [-2, -1]), (size, 256), (criterion, "taylor")],
)
def test_clip_still_refuses_what_leaves_nothing(ask: Any, wanted: Any) -> None:
    with pytest.raises(InvalidRangeError):
        ask(wanted, clip=True)
