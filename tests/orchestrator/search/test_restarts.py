"""A driver that is killed after any event decides, in generations, as if it had not been."""

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import pytest

from orchestrator.search import race
from orchestrator.search.config import Budget, SearchConfig
from orchestrator.search.field import Field
from orchestrator.store.journal import Event, Journal
from orchestrator.store.ledger import TrialState
from search_spaces.problem import Problem
from search_spaces.ranges import Ranges
from tests.orchestrator.fake_trials import disk
from tests.orchestrator.made_up_sweep import MadeUpSweep
from tests.orchestrator.search.asked_trials import FEW
from trainables.checkpoints import STATE, checkpoint_folder

RUNGS = tuple(1e9 * 2.15**rung for rung in range(5))
PROBLEM = Problem(rungs=RUNGS, native_resolution=32, train_images=50_000, classes=10)


def events(folder: Path) -> list[Event]:
    return list(Journal(disk(folder), "journal").events())


def decisions(folder: Path) -> dict[str, Any]:
    """All that was decided; what a generation decides while it runs is in no order."""
    known = events(folder)
    begun = [
        (
            event["event"],
            event.get("trial_id"),
            event.get("trial_ids"),
            event.get("continues"),
            event.get("confirms"),
        )
        for event in known
        if event["event"] in ("suggested", "resumed", "released")
    ]
    ended = sorted(
        (event["trial_id"], event.get("state"), event.get("reason") or "")
        for event in known
        if event["event"] == "finished"
    )
    measured = sorted(
        json.dumps([event["trial_id"], event["measurement"]])
        for event in known
        if event["event"] == "measured"
    )
    return {"begun": begun, "ended": ended, "measured": measured}


def killed_after(count: int, whole: MadeUpSweep, folder: Path) -> MadeUpSweep:
    """The sweep as it lies in a folder after so many events; later files may be there, or not."""
    (folder / "journal").mkdir(parents=True)
    kept = events(whole.folder)[:count]
    text = "".join(json.dumps(event) + "\n" for event in kept)
    (folder / "journal" / "segment-000001.jsonl").write_text(text)
    for event in kept:
        if event["event"] == "measured":
            rung = event["measurement"]["rung"]
            at = Path(checkpoint_folder(f"{folder}/trials/{event['trial_id']}", rung))
            at.mkdir(parents=True)
            (at / STATE).touch()
    return MadeUpSweep(
        folder, whole.ranges, whole.search, PROBLEM, concurrent=1 + count % 4, chance=Random(count)
    )


CASES: dict[str, tuple[Ranges, SearchConfig, Budget]] = {
    "raised": (
        FEW,
        SearchConfig(sampler="model", scheduler="race", generation=6),
        Budget(sweep_flops=120e9),
    ),
    "paused": (
        {**FEW, "target_rung": len(RUNGS) - 1},
        SearchConfig(sampler="random", scheduler="race", generation=12),
        Budget(sweep_flops=400e9),
    ),
    "halved": (
        FEW,
        SearchConfig(sampler="tpe", scheduler="halving", generation=8, startup_trials=8),
        Budget(trials=40),
    ),
}


@pytest.fixture(scope="module", autouse=True)
def few_may_wait() -> Iterator[None]:
    """So few trials may stay paused at a rung that some are given up."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(race, "WAITING", 4)
        yield


@pytest.fixture(scope="module", params=CASES)
def case(request: pytest.FixtureRequest) -> tuple[Ranges, SearchConfig, Budget]:
    return CASES[request.param]


@pytest.fixture(scope="module")
def whole(
    case: tuple[Ranges, SearchConfig, Budget], tmp_path_factory: pytest.TempPathFactory
) -> MadeUpSweep:
    """The sweep that nobody killed."""
    ranges, search, budget = case
    sweep = MadeUpSweep(tmp_path_factory.mktemp("whole"), ranges, search, PROBLEM)
    sweep.run(budget=budget)
    return sweep


@pytest.mark.parametrize("kill", range(3))
def test_a_driver_killed_after_any_event_decides_as_if_it_had_not_been(
    whole: MadeUpSweep, case: tuple[Ranges, SearchConfig, Budget], kill: int, tmp_path: Path
) -> None:
    count = Random(kill).randrange(1, len(events(whole.folder)))
    sweep = killed_after(count, whole, tmp_path / "killed")
    sweep.run(budget=case[2])
    assert decisions(sweep.folder) == decisions(whole.folder), f"killed after {count} events"


def test_the_field_is_that_of_the_ledger(whole: MadeUpSweep) -> None:
    kept = whole.driver._field
    anew = Field(RUNGS, whole.ledger.errors_at, whole.ledger.trials())
    for rung in range(len(RUNGS)):
        assert (kept.cost(rung), kept.entered(rung)) == (anew.cost(rung), anew.entered(rung))
        assert (kept.ready(rung), kept.ended(rung)) == (anew.ready(rung), anew.ended(rung))


def test_without_generations_the_field_is_that_of_the_ledger_too(tmp_path: Path) -> None:
    sweep = MadeUpSweep(tmp_path, FEW, SearchConfig(sampler="random", scheduler="race"), PROBLEM)
    sweep.run(budget=Budget(sweep_flops=120e9))
    assert any(trial.continues for trial in sweep.ledger.trials())
    test_the_field_is_that_of_the_ledger(sweep)


def test_paused_trials_that_are_given_up_end_honestly_and_for_good(tmp_path: Path) -> None:
    ranges, search, budget = CASES["paused"]
    sweep = MadeUpSweep(tmp_path, ranges, search, PROBLEM)
    sweep.run(budget=budget)
    dropped = [trial for trial in sweep.ledger.trials() if "dropped" in (trial.reason or "")]
    assert dropped
    assert {trial.state for trial in dropped} == {TrialState.HALVED}
    assert dropped[0].reason == (
        f"4 better trials wait at rung {dropped[0].measurements[-1].rung}: its checkpoint is "
        "dropped"
    )
    for trial in dropped:
        last = max(m.rung for m in trial.measurements)
        kept = {
            point.rung for point in sweep.ledger.frontier.points if point.trial_id == trial.trial_id
        }
        assert sweep.keeps(trial.trial_id, last) is (last in kept)
    waiting = Counter(
        trial.measurements[-1].rung
        for trial in sweep.ledger.trials()
        if trial.state is TrialState.PAUSED
    )
    assert max(waiting.values()) <= 4 + (search.generation or 0)
