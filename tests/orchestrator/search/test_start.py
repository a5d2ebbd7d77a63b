"""What a sweep starts with comes first and in order, begins cheap, and keeps to its share."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from orchestrator.search.config import Budget
from orchestrator.search.driver import Driver, Idle
from orchestrator.search.race import Race
from orchestrator.search.start import SHARE, StartRecipe, StartSampler, affordable, most_flops
from orchestrator.search.strategy import Strategy
from orchestrator.search.tpe import tpe
from orchestrator.search.uniform import uniform
from orchestrator.store.ledger import Ledger, TrialRecord, TrialState
from orchestrator.store.retention import CheckpointKeeper
from tests.orchestrator.fake_trials import Clock, MemoryJournal
from tests.orchestrator.search.asked_trials import RUNGS, complete, error_of, ids, run, running
from tests.orchestrator.search.learning_samplers import sampler_of
from trainables.measurement import Outcome, Report

LOW, HIGH = RUNGS[0], RUNGS[3]


def starts(*values: dict[str, Any]) -> list[StartRecipe]:
    return [StartRecipe(values=v, origin=f"space.start.{n}") for n, v in enumerate(values)]


THREE = starts(
    {"pruning_ratio": 0.3, "criterion": "l2", "learning_rate": 0.01, "optimizer": "sgd"},
    {"pruning_ratio": 0.5},
    {"pruning_ratio": 0.7},
)


def sampler(
    folder: Path, recipes: Sequence[StartRecipe] = THREE, *, most_flops: float | None = None
) -> StartSampler:
    drawn = sampler_of(folder / "study.jsonl", tpe(startup_trials=5))
    return StartSampler(drawn, recipes, most_flops=most_flops)


def ratios(records: Sequence[TrialRecord]) -> list[float]:
    return [float(record.recipe.settings["pruning_ratio"]) for record in records]


def asked(sampler: StartSampler, number: int, **limits: float) -> TrialRecord:
    suggestion = sampler.ask(number, **limits)
    assert suggestion is not None
    return replace(running(suggestion), start=suggestion.start)


def test_they_are_tried_first_and_in_order(tmp_path: Path) -> None:
    sweep = sampler(tmp_path)
    records = [asked(sweep, number) for number in range(6)]
    assert ratios(records)[:3] == [0.3, 0.5, 0.7]
    assert [record.start for record in records] == [0, 1, 2, None, None, None]


def test_what_a_recipe_leaves_open_is_drawn(tmp_path: Path) -> None:
    sweep = sampler(tmp_path)
    records = [asked(sweep, number) for number in range(3)]
    assert records[0].recipe.learning_rate == 0.01
    assert records[0].recipe.settings["criterion"] == "l2"
    assert len({record.recipe.learning_rate for record in records}) == 3
    assert all("criterion" in record.params for record in records)


def test_what_the_space_does_not_offer_is_drawn_too(tmp_path: Path) -> None:
    sweep = sampler(tmp_path, starts({"pruning_ratio": 7.0, "colour": "red"}))
    record = asked(sweep, 0)
    assert record.start == 0
    assert 0 <= ratios([record])[0] <= 0.95


def test_without_a_start_nothing_changes(tmp_path: Path) -> None:
    alone = run(sampler_of(tmp_path / "alone.jsonl", tpe(startup_trials=5)), [], 8)
    assert ids(run(sampler(tmp_path, ()), [], 8)) == ids(alone)


@pytest.mark.parametrize("killed_at", [1, 2, 3, 4])
def test_a_killed_driver_resumes_alike(tmp_path: Path, killed_at: int) -> None:
    sweep = sampler(tmp_path / "straight")
    expected = [asked(sweep, number) for number in range(5)]
    sweep = sampler(tmp_path)
    records = [asked(sweep, number) for number in range(killed_at)]
    sweep.ask(killed_at)  # and it dies before that is in the ledger
    sweep = sampler(tmp_path)
    sweep.reconcile(records)
    records += [asked(sweep, number) for number in range(killed_at, 5)]
    assert records == expected


def test_they_begin_where_the_first_recipe_did_and_never_further_up(tmp_path: Path) -> None:
    sweep = sampler(tmp_path)
    records = [asked(sweep, n, target_flops=f) for n, f in enumerate((LOW, HIGH, LOW, HIGH, LOW))]
    assert [record.start for record in records] == [0, None, 1, None, 2]
    assert [record.recipe.target_flops for record in records] == [LOW, HIGH, LOW, HIGH, LOW]
    resumed = sampler(tmp_path)
    resumed.reconcile(records[:3])
    assert asked(resumed, 3, target_flops=HIGH).start is None
    assert asked(resumed, 4, target_flops=LOW).start == 2


def test_where_the_aim_is_open_they_keep_to_their_share(tmp_path: Path) -> None:
    many = starts(*({"pruning_ratio": 0.5} for _ in range(12)))
    sweep = sampler(tmp_path, many, most_flops=2.5e9)
    aims = [asked(sweep, number).recipe.target_flops for number in range(12)]
    assert set(aims) == {1e9, 2e9}
    assert max(asked(sweep, number).recipe.target_flops for number in range(12, 24)) > 2.5e9


def test_one_that_does_not_fit_the_budget_waits(tmp_path: Path) -> None:
    sweep = sampler(tmp_path)
    assert sweep.ask(0, max_target_flops=LOW / 2) is None
    assert asked(sweep, 0, max_target_flops=LOW).start == 0


def test_one_that_cannot_be_realised_is_infeasible_and_no_more(tmp_path: Path) -> None:
    sweep = sampler(tmp_path)
    first = asked(sweep, 0)
    sweep.tell(replace(first, state=TrialState.INFEASIBLE, reason="nothing to prune"))
    second = asked(sweep, 1)
    sweep.tell(complete(second, error_of(second.recipe)))
    assert [second.start, asked(sweep, 2).start] == [1, 2]


@pytest.mark.parametrize(
    ("budget", "recipes"),
    [
        (Budget(wall_time=60), 12),
        (Budget(trials=200), 12),
        (Budget(trials=50), 5),
        (Budget(trials=2), 1),
        (Budget(sweep_flops=30e9), 3),
        (Budget(sweep_flops=1e15, trials=45, wall_time=60), 4),
    ],
)
def test_recipes_of_other_tasks_take_a_tenth_of_the_budget(budget: Budget, recipes: int) -> None:
    assert affordable(budget, most=12, entry_flops=1e9) == recipes


@pytest.mark.parametrize(
    ("budget", "recipes", "flops"),
    [
        (Budget(trials=9), 4, None),
        (Budget(sweep_flops=1e12), 0, None),
        (Budget(sweep_flops=1e12), 10, 1e10),
        (Budget(sweep_flops=1e10), 2, 1e9),
    ],
)
def test_each_may_aim_at_its_part_of_the_tenth(
    budget: Budget, recipes: int, flops: float | None
) -> None:
    assert most_flops(budget, recipes, entry_flops=1e9) == flops


def test_a_portfolio_of_the_worst_recipes_costs_its_share_and_no_more(tmp_path: Path) -> None:
    budget = Budget(sweep_flops=40 * RUNGS[-1])
    size = affordable(budget, most=12, entry_flops=LOW)
    worst = starts(*({"pruning_ratio": 0.95, "learning_rate": 1e-4} for _ in range(size)))
    ledger = Ledger(MemoryJournal(), clock=Clock())
    ledger.open(sweep_id="sweep")
    drawn = sampler_of(tmp_path / "study.jsonl", uniform)
    driver = Driver(
        ledger=ledger,
        strategy=Strategy(sampler=StartSampler(drawn, worst), scheduler=Race()),
        keeper=CheckpointKeeper(ledger, (tmp_path / "trials").as_uri()),
        budget=budget,
        levels=RUNGS,
        seed=0,
    )
    while not isinstance(trial := driver.next_trial(), Idle):
        (end,) = complete(trial, error_of(trial.recipe)).measurements
        driver.report(trial.trial_id, Report(outcome=Outcome.COMPLETE, measurement=end))
    tried = [trial for trial in ledger.trials() if trial.start is not None]
    assert [trial.start for trial in tried] == list(range(size))
    assert {trial.recipe.target_flops for trial in tried} == {LOW}
    assert sum(trial.executed_flops for trial in tried) <= SHARE * ledger.sweep_flops
    assert max(ratios([ledger.trial(ledger.frontier.points[-1].trial_id)])) < 0.95
