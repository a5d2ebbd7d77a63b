"""The names that a search space asks for tell the recipe's fields that they give."""

import pytest
from optuna.samplers import RandomSampler

from search_spaces.draws import Draw, draw
from search_spaces.names import fields_of, renamed, with_fields
from search_spaces.problem import Problem
from search_spaces.space import load_space, method_spaces

PROBLEM = Problem(
    rungs=(1e9, 2e9),
    native_resolution=32,
    train_images=5_000,
    classes=10,
    class_imbalance=3.0,
    source_task=True,
    sparse_backbone=True,
)
DERIVED = ("batch_size", "mixing", "target_rung")
"""Parameters whose fields have values that are made from theirs."""


def draws(method: str) -> list[Draw]:
    space = load_space(method)
    return [draw(space, {}, PROBLEM, RandomSampler(seed=seed)) for seed in range(40)]


@pytest.mark.parametrize("method", method_spaces())
def test_a_parameter_gives_the_fields_that_its_name_tells(method: str) -> None:
    for drawn in draws(method):
        recipe = drawn.recipe.flat()
        given = [field for name in drawn.names for field in fields_of(name)]
        assert len(given) == len(set(given)), "two parameters of one field"
        assert set(drawn.recipe.settings) <= set(given) <= set(recipe)
        for name, value in drawn.params.items():
            if name not in DERIVED:
                assert [recipe[field] for field in fields_of(name)] == [value], name


def test_a_parameter_that_is_derived_from_moves_its_fields() -> None:
    def recipe(**ranges: object) -> dict[str, object]:
        return dict(draw(load_space("full"), ranges, PROBLEM, RandomSampler(seed=0)).recipe.flat())

    for name, values in (("mixing", ("mixup", "cutmix")), ("target_rung", (0, 1))):
        one, other = (recipe(**{name: value}) for value in values)
        assert {field for field in one if one[field] != other[field]} == set(fields_of(name))


def test_names_are_shown_with_the_fields_that_are_called_otherwise() -> None:
    assert with_fields("adamw_rate") == "adamw_rate (learning_rate)"
    assert with_fields("pac_net_sparsity") == "pac_net_sparsity (sparsity)"
    assert with_fields("mixing") == "mixing (mixup, cutmix)"
    assert with_fields("learning_rate") == "learning_rate"
    assert with_fields("a_users_own") == "a_users_own"
    assert renamed(["learning_rate", "adamw_rate"]) == {"adamw_rate": ("learning_rate",)}
