"""The frontier is legible on a terminal of any width."""

from collections.abc import Mapping
from dataclasses import replace
from io import StringIO
from typing import Any

import pytest
from rich.console import Console

from analysis.frontier import Frontier, FrontierPoint
from orchestrator.terminal.frontier_table import FrontierTable, short_recipe
from search_spaces.recipe import Setting
from tests.orchestrator.fake_trials import measurement, recipe

LONGEST: dict[str, Setting] = {
    "method": "filter_pruning",
    "criterion": "random",
    "pruning_ratio": 0.55,
    "scope": "global",
    "width_rule": "inner",
    "learning_rate": 0.0031,
    "weight_decay": 1e-4,
    "batch_size": 128,
    "label_smoothing": 0.1,
    "layer_decay": 0.7,
    "trainable_depth": 0.75,
    "resolution": 224,
    "augmentation": 0.5,
    "target_flops": 1e13,
}


def point(
    number: int, *, recipe: Mapping[str, Setting] = LONGEST, **measured: Any
) -> FrontierPoint:
    values = {"test_error": 0.111, "inference_flops": 123e6, "params": 11_700_000} | measured
    return FrontierPoint(
        trial_id=f"t{number}",
        number=100 + number,
        measurement=measurement(3, 0.5 / (1 + number), train_flops=123e9 * (1 + number), **values),
        recipe=recipe,
    )


FRONTIER = Frontier((point(0), point(1), point(2)))


def lines(frontier: Frontier, width: int, *, newest: int | None = None) -> list[str]:
    output = StringIO()
    Console(width=width, file=output).print(FrontierTable(frontier, newest=newest))
    return output.getvalue().splitlines()


@pytest.mark.parametrize("width", [100, 120, 200])
def test_a_point_takes_one_line_from_100_columns_on(width: int) -> None:
    shown = lines(FRONTIER, width)
    assert len(shown) == 3 + 3  # title, two lines of headings, the points
    assert all(len(line) <= width for line in shown)


def test_all_there_is_to_say_fits_in_120_columns() -> None:
    (headings, *points) = lines(FRONTIER, 120)[2:]
    assert headings.split() == [
        "@",
        "rung",
        *("FLOPs", "error", "error", "meters", "FLOPs"),
        "recipe",
    ]
    assert points[0].split() == [
        *("100", "@", "3", "123", "G", "50.0", "%", "11.1", "%", "11.7", "M", "123", "M"),
        *("r0.55", "random/global/inner", "·", "lr", "0.0031", "d0.75", "224px", "b128"),
    ]


def test_a_hundred_columns_are_enough_for_a_whole_recipe() -> None:
    assert all(line.rstrip().endswith("b128") for line in lines(FRONTIER, 100)[3:])


@pytest.mark.parametrize("width", [60, 80])
def test_where_room_is_short_the_recipe_goes_on_below_and_no_number_is_cut(width: int) -> None:
    shown = lines(FRONTIER, width)
    assert all(len(line) <= width for line in shown)
    firsts = [line for line in shown if "@ 3" in line]
    assert len(firsts) == 3
    assert all("11.1 %" in line for line in firsts)
    assert " ".join(shown).count("b128") == 3


def test_eighty_columns_are_enough_for_a_running_sweeps_whole_recipe() -> None:
    running = Frontier(tuple(point(number, test_error=None) for number in range(3)))
    shown = lines(running, 80)
    assert "test" not in shown[1]
    usual = tuple(
        replace(p, recipe=recipe(5, scope="layer", width="inner").flat()) for p in running.points
    )
    for line in lines(Frontier(usual), 80)[3:]:
        assert line.rstrip().endswith("r0.5 l1/layer/inner · lr 0.0017 d1 32px b32")


def test_the_newest_points_are_the_most_accurate() -> None:
    shown = lines(FRONTIER, 120, newest=2)
    assert [line.split()[0] for line in shown[3:]] == ["101", "102"]


def test_methods_are_named_where_there_are_several() -> None:
    other = Frontier((point(0), point(1, recipe=LONGEST | {"method": "linear_probe"})))
    first, second = lines(other, 200)[3:]
    assert "filter_pruning: r0.55" in first
    assert "linear_probe: r0.55" in second


def test_an_empty_frontier_is_shown_as_such() -> None:
    assert "Compute-optimal frontier" in lines(Frontier(), 80)[0]


def test_any_methods_settings_are_shortened() -> None:
    shared = {name: LONGEST[name] for name in ("learning_rate", "trainable_depth")}
    shared |= {"resolution": 16, "batch_size": 16}
    assert short_recipe(shared) == "lr 0.0031 d0.75 16px b16"
    settings: dict[str, Setting] = {
        "temperature": 2,
        "mask_decay": 1e-4,
        "warm_up": True,
        "cold": False,
        "kind": "a",
    }
    assert short_recipe(settings | shared).startswith("t2 d0.0001 wu/a · lr 0.0031")


@pytest.mark.parametrize(
    ("optimizer", "written"),
    [
        ("sgd", "· lr 0.0031 "),
        ("adamw", "· adamw 0.0031 "),
        ("schedule_free_adamw", "· free 0.0031 "),
    ],
)
def test_a_rate_tells_its_optimiser(optimizer: str, written: str) -> None:
    assert written in short_recipe(LONGEST | {"optimizer": optimizer})
    shown = lines(Frontier((point(0, recipe=LONGEST | {"optimizer": optimizer}),)), 105)
    assert len(shown) == len(lines(Frontier((point(0),)), 105)), "and still takes one line"


def test_expected_errors_and_the_confirmed_points_are_told_where_they_are_known() -> None:
    expected = tuple(replace(p, expected_error=p.val_error + 0.01) for p in FRONTIER.points)
    confirmed = Frontier((expected[0], replace(expected[1], confirming_error=0.3), expected[2]))
    title, _, headings, first, *_ = lines(confirmed, 120)
    assert title.rstrip() == "Compute-optimal frontier, 1 of 3 points confirmed"
    assert headings.split()[2:5] == ["FLOPs", "error", "error"]
    assert "50.0 %" in first
    assert "51.0 %" in first
    assert "of 3 points" in lines(confirmed, 120, newest=1)[0], "whatever is shown of it"
    assert all(len(line) <= 80 for line in lines(confirmed, 80))
