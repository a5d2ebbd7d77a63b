"""What a sweep knew is read from its folder or its store, and the sweep is left as it was."""

from dataclasses import replace
from pathlib import Path

import pytest

from orchestrator.search.earlier import earlier_sweep
from orchestrator.search.fitting import OfferedSpace
from orchestrator.search.sampler import aimed_at
from orchestrator.search.uniform import uniform
from orchestrator.store.journal import Journal
from orchestrator.store.ledger import Ledger, TrialState
from search_spaces.methods.filter_pruning import filter_pruning
from tests.orchestrator.fake_trials import LEVELS, disk, reported
from tests.orchestrator.search.asked_trials import PROBLEM, RUNGS, running
from tests.orchestrator.search.learning_samplers import sampler_of
from trainables.errors import InputError


@pytest.fixture
def birds(tmp_path: Path) -> Path:
    """A sweep whose first recipe was raised, whose second diverged, whose third is infeasible."""
    root = tmp_path / "runs" / "birds"
    root.mkdir(parents=True)
    (root / "sweep.yaml").write_text("name: birds\n")
    journal = Journal(disk(root), "journal")
    ledger = Ledger(journal)
    ledger.open(sweep_id="birds")
    sampler = sampler_of(tmp_path / "study.jsonl", uniform, ranges={"optimizer": "adamw"})
    asked = [running(sampler.ask(number, target_flops=RUNGS[1])) for number in range(3)]
    for trial in asked:
        ledger.suggested(trial)
    for rung, error in enumerate((0.5, 0.4)):
        ledger.measured(asked[0].trial_id, reported(rung, error))
    ledger.measured(asked[1].trial_id, reported(0, 0.7))
    ledger.finished(asked[1].trial_id, TrialState.DIVERGED)
    ledger.finished(asked[2].trial_id, TrialState.INFEASIBLE)
    params, distributions = aimed_at(asked[0].params, asked[0].distributions, rung=2)
    raised = replace(
        asked[0],
        trial_id="raised",
        number=3,
        recipe=replace(asked[0].recipe, target_flops=LEVELS[2]),
        params=params,
        distributions=distributions,
        continues=asked[0].trial_id,
    )
    ledger.suggested(raised)
    ledger.measured("raised", reported(1, 0.45))
    ledger.measured("raised", reported(2, 0.2))
    journal.close()
    return root


def test_each_recipe_has_the_lowest_errors_of_all_its_trials(birds: Path) -> None:
    sweep = earlier_sweep(str(birds))
    assert sweep.name == "birds"
    assert [recipe.errors for recipe in sweep.recipes] == [(0.5, 0.4, 0.2), (0.7, None, None)]
    assert [recipe.method for recipe in sweep.recipes] == 2 * ["filter_pruning"]


def test_what_it_aimed_at_is_left_out_and_what_was_fixed_is_told(birds: Path) -> None:
    recipe = earlier_sweep(str(birds)).recipes[0]
    assert not {"target_rung", "target_flops", "resolution"} & recipe.values.keys()
    assert recipe.values["optimizer"] == "adamw"
    assert {"adamw_rate", "mixing"} <= recipe.values.keys()
    assert not {"learning_rate", "weight_decay", "mixup", "cutmix"} & recipe.values.keys()
    assert recipe.side in (0.5, 0.75, 1.0)


def test_another_sweep_has_all_of_it(birds: Path) -> None:
    offered = OfferedSpace(space=filter_pruning, ranges={}, problem=PROBLEM)
    trial = Ledger(Journal(disk(birds), "journal")).trials()[0]
    values = dict(offered.known(earlier_sweep(str(birds)).recipes[0]).values)
    assert values.pop("optimizer") == "adamw"
    assert values == {name: v for name, v in trial.params.items() if name != "target_rung"}


def test_a_sweep_is_known_by_name_folder_and_uri(
    birds: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(birds.parents[1])
    before = sorted(birds.rglob("*"))
    sweeps = [earlier_sweep(run) for run in ("birds", str(birds), f"{birds.as_uri()}/")]
    assert sweeps[0] == sweeps[1] == sweeps[2]
    assert sorted(birds.rglob("*")) == before


@pytest.mark.parametrize(
    ("run", "sentence"),
    [
        ("frogs", r"'frogs' is no sweep: .* there are birds\."),
        (
            "file:///no/such/place",
            r"'file:///no/such/place' is no sweep: it holds no journal;",
        ),
        ("ftp://host/birds", r"'ftp://host/birds' cannot be read \(.*\); give a sweep's folder,"),
    ],
)
def test_what_is_no_sweep_is_refused(
    birds: Path, monkeypatch: pytest.MonkeyPatch, run: str, sentence: str
) -> None:
    monkeypatch.chdir(birds.parents[1])
    with pytest.raises(InputError, match=sentence):
        earlier_sweep(run)
    assert not Path("/no/such/place").exists()


def test_a_sweep_that_has_measured_nothing_is_refused(tmp_path: Path) -> None:
    (tmp_path / "sweep.yaml").write_text("name: birds\n")
    with pytest.raises(InputError, match=r"has measured nothing; leave it out\."):
        earlier_sweep(str(tmp_path))
