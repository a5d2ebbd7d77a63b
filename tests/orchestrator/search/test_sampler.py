"""Every sampler keeps to one contract: one recipe a number, the same after every restart."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from random import Random

import optuna
import pytest
from optuna.distributions import json_to_distribution
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState as StudyState

from orchestrator.search.config import SearchConfig
from orchestrator.search.sampler import StudySampler
from orchestrator.search.strategies import SAMPLERS, sampler_draws
from orchestrator.search.strategy import Sampler
from orchestrator.store.ledger import TrialRecord, TrialState
from search_spaces.methods.filter_pruning import filter_pruning
from search_spaces.problem import Problem
from search_spaces.ranges import InvalidRangeError, Ranges
from search_spaces.recipe import InvalidRecipeError, Recipe
from search_spaces.space import InvalidSpaceError, Space, Trial
from tests.orchestrator.search.asked_trials import (
    FEW,
    PROBLEM,
    RUNGS,
    complete,
    ids,
    run,
    running,
)

Make = Callable[..., Sampler]


@pytest.fixture(params=sorted(SAMPLERS))
def make(tmp_path: Path, request: pytest.FixtureRequest) -> Make:
    """Builds the sampler of each name that a config may give."""

    def sampler(
        name: str = "study",
        *,
        space: Space = filter_pruning,
        ranges: Ranges | None = None,
        seed: int = 0,
        startup_trials: int = 5,
    ) -> Sampler:
        search = SearchConfig(sampler=request.param, startup_trials=startup_trials)
        return StudySampler(
            study_path=tmp_path / f"{name}.jsonl",
            sweep_id="sweep",
            space=space,
            ranges=ranges or {},
            problem=PROBLEM,
            seed=seed,
            draws=sampler_draws(search),
        )

    return sampler


def states(tmp_path: Path) -> list[StudyState]:
    storage = JournalStorage(JournalFileBackend(str(tmp_path / "study.jsonl")))
    return [t.state for t in optuna.load_study(study_name="sweep", storage=storage).get_trials()]


def test_a_suggestion_holds_what_the_ledger_must_keep(make: Make) -> None:
    suggestion = make(ranges={"batch_size": 32}).ask(0)
    assert suggestion is not None
    assert suggestion.number == 0
    assert suggestion.params["learning_rate"] == suggestion.recipe.learning_rate
    assert "batch_size" not in suggestion.params
    assert set(suggestion.params) == set(suggestion.distributions)
    for name, value in suggestion.params.items():
        distribution = json_to_distribution(suggestion.distributions[name])
        assert distribution._contains(distribution.to_internal_repr(value))


def test_seed_and_number_decide(make: Make) -> None:
    first = ids(run(make("a"), [], 12))
    assert ids(run(make("b"), [], 12)) == first
    assert len(set(first)) == 12
    assert not set(ids(run(make("c", seed=1), [], 12))) & set(first)


@pytest.mark.parametrize("study_is_lost", [False, True])
def test_a_restart_changes_nothing(make: Make, tmp_path: Path, *, study_is_lost: bool) -> None:
    expected = ids(run(make("straight"), [], 14))
    records: list[TrialRecord] = []
    for _ in range(7):
        if study_is_lost:
            (tmp_path / "study.jsonl").unlink(missing_ok=True)
        sampler = make()
        sampler.reconcile(records)
        run(sampler, records, 2)
    assert ids(records) == expected


def test_a_restart_keeps_the_running_trials_in_mind(make: Make, tmp_path: Path) -> None:
    sampler = make()
    records = run(sampler, [], 8)
    records += [running(sampler.ask(number)) for number in (8, 9, 10)]
    expected = sampler.ask(11)
    restarted = make()
    restarted.reconcile(records)
    assert states(tmp_path)[8:] == 3 * [StudyState.RUNNING]
    assert restarted.ask(11) == expected


def test_parallel_trials_differ(make: Make) -> None:
    sampler = make()
    run(sampler, [], 8)
    assert len({running(sampler.ask(number)).recipe.recipe_id for number in range(8, 16)}) == 8


def test_only_the_next_number_may_be_asked(make: Make) -> None:
    sampler = make()
    sampler.ask(0)
    for number in (0, 2):
        with pytest.raises(ValueError, match=f"Trial {number} was asked for while the study hol"):
            sampler.ask(number)


def test_a_rerun_takes_its_number(make: Make, tmp_path: Path) -> None:
    sampler = make()
    records = run(sampler, [], 6)
    rerun = replace(records[0], number=6, state=TrialState.RUNNING, measurements=())
    sampler.tell(rerun)
    assert running(sampler.ask(7)).number == 7
    assert states(tmp_path)[6:] == 2 * [StudyState.RUNNING]


@pytest.mark.parametrize("trials_before", [0, 8])
def test_the_budget_caps_the_compute_aimed_at(make: Make, trials_before: int) -> None:
    sampler = make()
    records = run(sampler, [], trials_before)
    aims = set()
    for number in range(len(records), len(records) + 25):
        record = running(sampler.ask(number, max_target_flops=4.1e9))
        sampler.tell(complete(record, 0.5))
        aims.add(record.recipe.target_flops)
    assert aims == {1e9, 2e9, 4e9}


@pytest.mark.parametrize(
    ("ranges", "limit"),
    [({}, 0.9e9), ({}, 0.0), ({"target_rung": 3}, 4e9), ({"target_rung": [3, 5]}, 4e9)],
)
def test_none_when_nothing_is_cheap_enough(
    make: Make, tmp_path: Path, ranges: Ranges, limit: float
) -> None:
    sampler = make(ranges=ranges)
    assert sampler.ask(0, max_target_flops=limit) is None
    assert states(tmp_path) == []
    assert running(sampler.ask(0)).recipe.target_flops in RUNGS


def test_a_range_of_rungs_is_cut_by_the_budget(make: Make) -> None:
    sampler = make(ranges={"target_rung": [2, 5]})
    aims = {
        running(sampler.ask(number, max_target_flops=8e9)).recipe.target_flops
        for number in range(20)
    }
    assert aims == {4e9, 8e9}


def test_a_space_deaf_to_the_rungs_is_held_to_the_budget(make: Make) -> None:
    def deaf(trial: Trial, problem: Problem) -> Recipe:
        return replace(filter_pruning(trial, problem), target_flops=8e9)

    sampler = make(space=deaf)
    assert sampler.ask(0, max_target_flops=4e9) is None
    assert running(sampler.ask(0, max_target_flops=8e9)).recipe.target_flops == 8e9


def test_a_bad_range_is_not_taken_for_a_spent_budget(make: Make, tmp_path: Path) -> None:
    sampler = make(ranges={"pruning_ratio": 2.0})
    with pytest.raises(InvalidRangeError, match=r"ranges\.pruning_ratio=2\.0 must lie within"):
        sampler.ask(0)
    assert states(tmp_path) == []


def test_an_invalid_recipe_is_drawn_again(make: Make) -> None:
    def picky(trial: Trial, problem: Problem) -> Recipe:
        recipe = filter_pruning(trial, problem)
        if recipe.settings.get("criterion") != "l1":
            raise InvalidRecipeError("criterion must be l1 on this task; choose l1.")
        return recipe

    records = run(make("a", space=picky), [], 10)
    assert {record.recipe.settings["criterion"] for record in records} == {"l1"}
    assert ids(run(make("b", space=picky), [], 10)) == ids(records)


def test_a_space_that_only_fails_leaves_no_trial(make: Make, tmp_path: Path) -> None:
    def hopeless(trial: Trial, problem: Problem) -> Recipe:
        return replace(filter_pruning(trial, problem), learning_rate=-1.0)

    def broken(trial: Trial, problem: Problem) -> Recipe:
        filter_pruning(trial, problem)
        raise RuntimeError("out of tea")

    with pytest.raises(InvalidRecipeError, match="learning_rate"):
        make(space=hopeless).ask(0)
    with pytest.raises(InvalidSpaceError, match="out of tea"):
        make(space=broken).ask(0)
    assert states(tmp_path) == []


def test_a_sweep_can_go_on_with_other_ranges(make: Make) -> None:
    records = run(make(), [], 12)
    assert {record.recipe.settings.get("criterion") for record in records} - {"l1", "random"}
    narrower = make(ranges={"criterion": ["l1", "random"], "pruning_ratio": [0.7, 0.9]})
    narrower.reconcile(records)
    later = run(narrower, records, 12)[12:]
    assert {record.recipe.settings["criterion"] for record in later} <= {"l1", "random"}
    assert all(0.7 <= float(r.recipe.settings["pruning_ratio"]) <= 0.9 for r in later)
    wider = make()
    wider.reconcile(records)
    run(wider, records, 3)


def test_every_outcome_can_be_learnt_from(make: Make) -> None:
    sampler, chance = make(ranges=FEW), Random(0)
    outcomes = [state for state in TrialState if state.finished]
    records: list[TrialRecord] = []
    for number in range(40):
        record = running(sampler.ask(number))
        if chance.random() < 0.5:
            record = complete(record, chance.random())
        records.append(replace(record, state=chance.choice(outcomes)))
        sampler.tell(records[-1])
    rebuilt = make("rebuilt", ranges=FEW)
    rebuilt.reconcile(records)
    assert rebuilt.ask(40) == sampler.ask(40)


def test_a_seed_below_zero_is_refused(make: Make) -> None:
    with pytest.raises(ValueError, match="seed=-1 must"):
        make(seed=-1)


def test_nothing_is_printed(make: Make, capfd: pytest.CaptureFixture[str]) -> None:
    run(make(), [], 8)
    assert capfd.readouterr() == ("", "")
