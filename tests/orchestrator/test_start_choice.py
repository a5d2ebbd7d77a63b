"""A sweep starts with what its user wrote, else with what earlier sweeps or a portfolio know."""

from pathlib import Path
from typing import Any

import pytest

from orchestrator.config import SweepConfig, validate
from orchestrator.search.fitting import OfferedSpace
from orchestrator.search.portfolio import KnownRecipe, write
from orchestrator.search.uniform import uniform
from orchestrator.start_choice import StartChoice, choose_start
from orchestrator.store.journal import Journal
from orchestrator.store.ledger import Ledger
from search_spaces.problem import Problem
from search_spaces.space import load_space
from tests.orchestrator.fake_trials import disk, reported
from tests.orchestrator.search.asked_trials import RUNGS, running
from tests.orchestrator.search.learning_samplers import sampler_of
from trainables.errors import InputError

PROBLEM = Problem(rungs=RUNGS, native_resolution=64, train_images=50_000, classes=10)
KNOWING: dict[str, Any] = {"search": {"sampler": "model"}}


def choice(
    *,
    after: tuple[str, ...] = (),
    function: str = "filter_pruning",
    start: list[dict[str, Any]] | None = None,
    ranges: dict[str, Any] | None = None,
    **values: Any,
) -> StartChoice:
    """What a sweep of this space starts with."""
    space = {"function": function, "start": start or [], "ranges": ranges or {}}
    some: dict[str, Any] = {
        "name": "frogs",
        "task": {"source": "digits"},
        "backbone": {"model": "resnet18"},
        "budget": {"trials": 200},
        "rungs": {"min_flops": RUNGS[0], "max_flops": RUNGS[-1]},
    }
    config = validate(SweepConfig, some | values | {"space": space}, what="the test")
    offered = OfferedSpace(space=load_space(function), ranges=config.space.ranges, problem=PROBLEM)
    return choose_start(config, offered, after=after)


def values_of(choice: StartChoice, name: str) -> list[Any]:
    return [recipe.values.get(name) for recipe in choice.recipes]


@pytest.fixture
def birds(tmp_path: Path) -> str:
    """An earlier sweep of 30 recipes, of which later ones are better."""
    root = tmp_path / "birds"
    root.mkdir()
    (root / "sweep.yaml").write_text("name: birds\n")
    journal = Journal(disk(root), "journal")
    ledger = Ledger(journal)
    ledger.open(sweep_id="birds")
    sampler = sampler_of(tmp_path / "study.jsonl", uniform, ranges={"optimizer": "sgd"})
    for number in range(30):
        trial = running(sampler.ask(number))
        ledger.suggested(trial)
        ledger.measured(trial.trial_id, reported(0, 0.9 - 0.01 * number))
    journal.close()
    return str(root)


def test_a_sampler_as_published_starts_from_nothing_unless_told_otherwise() -> None:
    assert choice(search={"sampler": "tpe"}) == StartChoice(
        recipes=(), told="recipes drawn from the space"
    )


def test_the_users_own_come_in_their_order() -> None:
    found = choice(start=[{"pruning_ratio": 0.5}, {"pruning_ratio": 0.1}], **KNOWING)
    assert values_of(found, "pruning_ratio") == [0.5, 0.1]
    assert [recipe.origin for recipe in found.recipes] == ["space.start.0", "space.start.1"]
    assert found.told == "2 of space.start"


def test_the_users_own_are_all_tried_and_it_is_told_what_they_take() -> None:
    many = [{"pruning_ratio": 0.05 * n} for n in range(10)]
    found = choice(start=many, budget={"sweep_flops": 50 * RUNGS[0], "trials": 20})
    assert len(found.recipes) == 10
    assert found.told == "10 of space.start, which take 20% of budget.sweep_flops"


def test_the_first_wrong_one_is_named() -> None:
    with pytest.raises(InputError, match=r"^space\.start\.1\.pruning_ratio=2 must lie within"):
        choice(start=[{}, {"pruning_ratio": 2}, {"pruning_ratio": 3}])


def test_the_best_of_earlier_sweeps_follow_the_users_own(birds: str) -> None:
    found = choice(start=[{"pruning_ratio": 0.5}], after=(birds,), **KNOWING)
    assert len(found.recipes) == 13
    assert found.told == "1 of space.start; 12 of birds"
    ledger = Ledger(Journal(disk(Path(birds)), "journal"))
    best = list(reversed(ledger.trials()))
    for recipe, trial in zip(found.recipes[1:4], best, strict=False):
        assert recipe.origin == f"birds, trial {trial.trial_id}"
        assert recipe.values["learning_rate"] == trial.recipe.learning_rate


@pytest.mark.parametrize(
    ("budget", "recipes"),
    [({"trials": 40}, 4), ({"trials": 3}, 1), ({"sweep_flops": 60 * RUNGS[0]}, 6)],
)
def test_those_of_others_take_a_tenth_of_the_budget(
    birds: str, budget: dict[str, Any], recipes: int
) -> None:
    assert len(choice(after=(birds,), budget=budget).recipes) == recipes


def test_a_space_that_only_offers_dear_recipes_gets_fewer(birds: str) -> None:
    ranges = {"target_rung": [3, 5]}
    found = choice(after=(birds,), ranges=ranges, budget={"sweep_flops": 60 * RUNGS[3]})
    assert len(found.recipes) == 6


def test_what_the_space_does_not_offer_is_told_once(birds: str) -> None:
    ranges = {"optimizer": "sgd", "criterion": ["l1", "l2"], "weight_decay": [1e-5, 1e-4]}
    found = choice(after=(birds,), ranges=ranges)
    assert set(values_of(found, "criterion")) <= {"l1", "l2", None}
    assert "of birds; moved into the search space's range: weight_decay (" in found.told
    assert "; passed over because criterion='" in found.told


def test_sweeps_none_of_whose_recipes_fit_leave_the_start_empty(birds: str) -> None:
    found = choice(after=(birds,), function="full")
    assert found.recipes == ()
    assert found.told == "passed over because method='filter_pruning' is not offered (30)"


# the portfolio


@pytest.mark.parametrize("function", ["filter_pruning", "full", "joint"])
def test_a_built_in_space_starts_with_our_portfolio(function: str) -> None:
    found = choice(function=function)
    assert found == choice(function=function, **KNOWING)
    assert 3 <= len(found.recipes) <= 12
    assert "gtsrb" in found.told


@pytest.mark.parametrize(
    "search",
    [
        {"sampler": "tpe"},
        {"sampler": "random"},
        {"scheduler": "halving"},
        {"reduction_factor": None},
        {"sampler": "model", "portfolio": "none"},
    ],
)
def test_others_start_without(search: dict[str, Any]) -> None:
    assert choice(search=search).recipes == ()


def test_who_has_a_start_gets_no_portfolio(birds: str) -> None:
    assert choice(start=[{"pruning_ratio": 0.5}], **KNOWING).told == "1 of space.start"
    assert choice(after=(birds,), **KNOWING).told == "12 of birds"


def test_a_space_of_ones_own_gets_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_space_of_start.py").write_text(
        "from search_spaces.methods.full import full as space\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert choice(function="own_space_of_start:space", **KNOWING).recipes == ()


def test_a_file_serves_any_sampler(tmp_path: Path) -> None:
    recipes = [
        KnownRecipe(
            sweep="plants",
            trial=str(n),
            method="filter_pruning",
            values={"pruning_ratio": ratio},
            side=None,
            errors=(0.5,),
        )
        for n, ratio in enumerate((0.5, 0.2, 0.2))
    ]
    write(tmp_path / "ours.json", recipes)
    found = choice(search={"portfolio": str(tmp_path / "ours.json"), "sampler": "random"})
    assert values_of(found, "pruning_ratio") == [0.5, 0.2]
    assert found.told == "2 of plants"
    with pytest.raises(InputError, match=r"search\.portfolio='portfolio\.jsn' cannot be read"):
        choice(search={"portfolio": "portfolio.jsn"})
