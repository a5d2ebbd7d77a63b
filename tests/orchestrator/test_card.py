"""The card tells what a model is and how to use it."""

import pytest

from orchestrator.card import model_card
from orchestrator.config import SweepConfig, validate
from tests.orchestrator.fake_trials import ledger_of


@pytest.mark.parametrize(
    ("model", "loading"),
    [
        ("resnet18", 'load_exported("path/of/this/folder")'),
        ("my_nets:make", "load_exported(\"path/of/this/folder\", factories=['my_nets:make'])"),
    ],
)
def test_the_card_says_what_it_is_what_it_reached_and_how_it_was_made(
    model: str, loading: str
) -> None:
    ledger = ledger_of({0: [0.5, 0.25]})
    ledger.tested("t0", 1, test_error=0.3)
    config = validate(
        SweepConfig,
        {
            "name": "flowers",
            "task": {"source": "oxford/flowers"},
            "backbone": {"model": model},
            "budget": {"trials": 1},
            "rungs": {"min_flops": 1e9, "max_flops": 2e9},
        },
        what="the test",
    )
    point = ledger.frontier.points[-1]
    card = model_card(point, config)
    assert card.startswith(f"# {model} on oxford/flowers\n")
    for row in (
        "| validation error | 25.0 % |",
        "| test error | 30.0 % |",
        "| training compute | 2 GFLOPs |",
        "| parameters | 1 k |",
        loading,
    ):
        assert row in card
    for name, value in point.recipe.items():
        assert f"| {name} | {value} |" in card
