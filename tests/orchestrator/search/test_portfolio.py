"""A portfolio covers the frontiers that it was chosen from, as well as so few recipes can."""

import json
from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.search.fitting import OfferedSpace
from orchestrator.search.portfolio import (
    SHIPPED,
    SIZE,
    SIZE_OF_METHOD,
    EarlierSweep,
    KnownRecipe,
    choose,
    portfolio_of,
    read,
    write,
)
from search_spaces.joint import joint
from search_spaces.problem import Problem
from search_spaces.space import load_space
from trainables.errors import InputError

Errors = Sequence[float | None]


def known(
    number: int, errors: Errors, *, method: str = "full", sweep: str = "birds", **values: Any
) -> KnownRecipe:
    return KnownRecipe(
        sweep=sweep,
        trial=str(number),
        method=method,
        values={"learning_rate": 10.0**-number} | values,
        side=None,
        errors=tuple(errors),
    )


def sweep_of(
    curves: Mapping[int, Errors], *, name: str = "birds", method: str = "full"
) -> EarlierSweep:
    recipes = [known(n, errors, sweep=name, method=method) for n, errors in curves.items()]
    return EarlierSweep(name=name, recipes=recipes)


def chosen(*sweeps: EarlierSweep, size: int) -> list[tuple[str, str]]:
    return [(recipe.sweep, recipe.trial) for recipe in choose(sweeps, size)]


CROSSING = {0: (0.5, 0.49, 0.48), 1: (0.6, 0.4, 0.4), 2: (0.95, 0.9, 0.1), 3: (0.8, 0.7, 0.6)}


def test_a_recipe_gains_by_the_share_that_it_beats_for_that_compute_or_less() -> None:
    gains = sweep_of({0: (0.5, 0.9), 1: (None, 0.2), 2: (0.7, 0.6), 3: (None, None)}).gains
    assert gains[:, 0].tolist() == [1.0, 0.0, 0.75, 0.0]
    assert gains[:, -1].tolist() == [0.75, 1.0, 0.5, 0.0]


def test_each_next_one_covers_most_of_what_is_left() -> None:
    assert chosen(sweep_of(CROSSING), size=3) == [("birds", "1"), ("birds", "0"), ("birds", "2")]


def test_sweeps_count_alike_whatever_their_errors_are() -> None:
    easy = sweep_of({0: (0.02, 0.01), 1: (0.03, 0.02)}, name="easy")
    hard = sweep_of({2: (0.9, 0.89), 3: (0.95, 0.94)}, name="hard")
    assert {sweep for sweep, _ in chosen(easy, hard, size=2)} == {"easy", "hard"}


def test_what_is_left_covers_all_once_more() -> None:
    both = sweep_of({0: (0.1, 0.1), 1: (0.2, 0.2), 2: (0.9, 0.9)})
    assert [trial for _, trial in chosen(both, size=2)] == ["0", "1"]


def test_what_was_never_measured_is_not_chosen() -> None:
    assert chosen(sweep_of({0: (None, None), 1: (None, 0.3)}), size=5) == [("birds", "1")]


def test_what_does_not_fit_is_passed_over_and_the_next_one_covers_its_place() -> None:
    found = choose([sweep_of(CROSSING)], 2, fits=lambda recipe: recipe.trial != "1")
    assert [recipe.trial for recipe in found] == ["0", "2"]


def test_a_recipe_that_two_sweeps_know_is_chosen_once() -> None:
    ours, theirs = sweep_of({0: (0.1, 0.1), 1: (0.2, 0.2)}), sweep_of({0: (0.3, 0.3)}, name="frogs")
    assert [trial for _, trial in chosen(ours, theirs, size=3)] == ["0", "1"]


def test_recipes_are_alike_that_differ_in_what_goes_by_the_task() -> None:
    values: dict[str, Any] = {"rate": 0.1, "batch_size": 32, "criterion": "l1"}
    one = known(1, (0.1,), **values, class_weighting=0.7)
    assert one.is_like(known(1, (0.5,), **values | {"rate": 0.105}))
    for other in ({"rate": 0.2}, {"batch_size": 33}, {"criterion": "l2"}, {"scope": "layer"}):
        assert not one.is_like(known(1, (0.1,), **values | other))
    assert not one.is_like(known(1, (0.1,), method="lora", **values))


@given(
    st.lists(
        st.lists(st.one_of(st.none(), st.floats(0, 1)), min_size=3, max_size=3),
        min_size=3,
        max_size=7,
    )
)
def test_greed_is_nearly_as_good_as_the_best_choice(curves: list[list[float | None]]) -> None:
    sweep = sweep_of(dict(enumerate(curves)))
    rows = [int(recipe.trial) for recipe in choose([sweep], 2)]

    def covered(chosen: Sequence[int]) -> float:
        return float(np.max(sweep.gains[list(chosen)], axis=0, initial=0.0).sum())

    best = max(covered(pair) for pair in combinations(range(len(curves)), 2))
    assert covered(rows) >= (1 - 1 / np.e) * best - 1e-9


def test_more_of_each_method_follow() -> None:
    full = sweep_of({n: (n / 10, n / 10) for n in range(9)})
    lora = sweep_of({n: (0.9, 0.9 + n / 100) for n in range(9)}, method="lora")
    both = EarlierSweep(name="birds", recipes=[*full.recipes, *lora.recipes])
    found = portfolio_of([both], size=2)
    assert [recipe.method for recipe in found[:2]] == ["full", "full"]
    assert [recipe.method for recipe in found].count("full") == SIZE_OF_METHOD
    assert [recipe.method for recipe in found].count("lora") == SIZE_OF_METHOD


# files


def test_a_file_gives_back_what_was_written(tmp_path: Path) -> None:
    recipes = [known(0, (0.5, None), criterion="l1"), known(1, (None, 0.25))]
    write(tmp_path / "some.json", recipes)
    assert read(tmp_path / "some.json") == recipes


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"recipes": 3}', '{"recipes": [{"sweep": "x"}]}', '"recipes"']
)
def test_what_is_no_portfolio_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "some.json").write_text(text)
    with pytest.raises(
        InputError, match=r"some\.json' cannot be read \(it is no portfolio\); give"
    ):
        read(tmp_path / "some.json")


def test_a_portfolio_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none\.json' cannot be read \(No such file"):
        read(tmp_path / "none.json")


PLANTS = Problem(rungs=(1e12, 1e13), native_resolution=224, train_images=2_000, classes=102)


def test_ours_fits_the_built_in_spaces() -> None:
    recipes = read(SHIPPED)
    for recipe in recipes[:SIZE]:
        OfferedSpace(space=joint, ranges={}, problem=PLANTS).known(recipe)
    for method in ("filter_pruning", "full", "last_stages", "linear_probe", "lora"):
        alone = OfferedSpace(space=load_space(method), ranges={}, problem=PLANTS)
        fitted = [alone.known(recipe) for recipe in recipes if recipe.method == method]
        assert len(fitted) >= 3
        assert all(one.values["resolution"] in (112, 168, 224) for one in fitted)


def test_ours_says_where_each_recipe_comes_from() -> None:
    for recipe in json.loads(SHIPPED.read_text())["recipes"]:
        assert recipe["sweep"]
        assert recipe["trial"]
        assert any(error is not None for error in recipe["errors"])
        assert not {"target_rung", "target_flops"} & recipe["values"].keys()
