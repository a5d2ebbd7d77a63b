"""A driver that is killed after any event decides, in generations, as if it had not been."""

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import pytest

from orchestrator.search import race
from orchestrator.search.chance import Chance
from orchestrator.search.config import Budget, SearchConfig
from orchestrator.search.driver import Driver, Idle
from orchestrator.search.field import Field
from orchestrator.search.strategies import build_strategy
from orchestrator.search.strategy import Decision
from orchestrator.store.journal import Event, Journal
from orchestrator.store.ledger import Ledger, TrialRecord, TrialState
from orchestrator.store.retention import CheckpointKeeper
from search_spaces.methods.filter_pruning import filter_pruning
from search_spaces.problem import Problem
from search_spaces.ranges import Ranges
from tests.orchestrator.fake_trials import disk
from tests.orchestrator.made_up_trials import MadeUpTrial
from tests.orchestrator.search.asked_trials import FEW
from trainables.checkpoints import STATE, checkpoint_folder
from trainables.measurement import Report

RUNGS = tuple(1e9 * 2.15**rung for rung in range(5))
PROBLEM = Problem(rungs=RUNGS, native_resolution=32, train_images=50_000, classes=10)
TEN_CLASSES = Chance(images=1000, most_common=100, min_peers=4)


@dataclass
class Sweep:
    """A sweep in a folder, whose trials are made up, and whose checkpoints are empty files."""

    folder: Path
    ranges: Ranges
    search: SearchConfig
    concurrent: int = 3
    chance: Random = field(default_factory=lambda: Random(0))
    running: dict[str, list[Report]] = field(default_factory=dict)

    def run(self, *, budget: Budget) -> None:
        """Runs a driver until there is nothing left to do."""
        journal = Journal(disk(self.folder), "journal")
        self.ledger = Ledger(journal)
        self.ledger.open(sweep_id="sweep", validation_images=TEN_CLASSES.images)
        strategy = build_strategy(
            self.search,
            study_path=self.folder / "optuna.journal",
            sweep_id="sweep",
            space=filter_pruning,
            ranges=self.ranges,
            problem=PROBLEM,
            seed=0,
            chance=TEN_CLASSES,
            budget=budget,
        )
        strategy.sampler.reconcile(self.ledger.trials())
        self.driver = Driver(
            ledger=self.ledger,
            strategy=strategy,
            keeper=CheckpointKeeper(self.ledger, self.trials.as_uri()),
            budget=budget,
            levels=RUNGS,
            seed=0,
            confirm=self.search.confirm,
        )
        self.running.clear()
        while self._fill():
            self._step()
        journal.close()

    @property
    def trials(self) -> Path:
        return self.folder / "trials"

    def _fill(self) -> bool:
        """Gives every worker a trial; tells whether any runs."""
        while len(self.running) < self.concurrent:
            trial = self.driver.next_trial()
            if isinstance(trial, Idle):
                break
            self.running[trial.trial_id] = self._begun(trial)
        return bool(self.running)

    def _begun(self, trial: TrialRecord) -> list[Report]:
        after, begins_at = None, 0.0
        if trial.measurements:
            after = trial.measurements[-1].rung
            assert trial.state.finished or self._is_kept(trial.trial_id, after)
        elif trial.continues is not None and (
            known := self.ledger.trial(trial.continues).measurements
        ):
            begins_at = known[-1].trunk_flops
            assert not begins_at or self._is_kept(trial.continues, known[-1].rung)
        made_up = MadeUpTrial(
            recipe=trial.recipe, seed=trial.seed, levels=RUNGS, begins_at=begins_at
        )
        return list(made_up.reports(after=after))

    def _is_kept(self, trial_id: str, rung: int) -> bool:
        return Path(checkpoint_folder(f"{self.trials}/{trial_id}", rung), STATE).exists()

    def _step(self) -> None:
        trial_id = self.chance.choice(sorted(self.running))
        report, *ahead = self.running.pop(trial_id)
        if report.measurement is not None:
            folder = Path(checkpoint_folder(f"{self.trials}/{trial_id}", report.measurement.rung))
            folder.mkdir(parents=True, exist_ok=True)
            (folder / STATE).touch()
        if self.driver.report(trial_id, report) is Decision.CONTINUE:
            self.running[trial_id] = ahead


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


def killed_after(count: int, whole: Sweep, folder: Path) -> Sweep:
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
    return Sweep(folder, whole.ranges, whole.search, concurrent=1 + count % 4, chance=Random(count))


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
) -> Sweep:
    """The sweep that nobody killed."""
    ranges, search, budget = case
    sweep = Sweep(tmp_path_factory.mktemp("whole"), ranges, search)
    sweep.run(budget=budget)
    return sweep


@pytest.mark.parametrize("kill", range(3))
def test_a_driver_killed_after_any_event_decides_as_if_it_had_not_been(
    whole: Sweep, case: tuple[Ranges, SearchConfig, Budget], kill: int, tmp_path: Path
) -> None:
    count = Random(kill).randrange(1, len(events(whole.folder)))
    sweep = killed_after(count, whole, tmp_path / "killed")
    sweep.run(budget=case[2])
    assert decisions(sweep.folder) == decisions(whole.folder), f"killed after {count} events"


def test_the_field_is_that_of_the_ledger(whole: Sweep) -> None:
    kept = whole.driver._field
    anew = Field(RUNGS, whole.ledger.errors_at, whole.ledger.trials())
    for rung in range(len(RUNGS)):
        assert (kept.cost(rung), kept.entered(rung)) == (anew.cost(rung), anew.entered(rung))
        assert (kept.ready(rung), kept.ended(rung)) == (anew.ready(rung), anew.ended(rung))


def test_without_generations_the_field_is_that_of_the_ledger_too(tmp_path: Path) -> None:
    sweep = Sweep(tmp_path, FEW, SearchConfig(sampler="random", scheduler="race"))
    sweep.run(budget=Budget(sweep_flops=120e9))
    assert any(trial.continues for trial in sweep.ledger.trials())
    test_the_field_is_that_of_the_ledger(sweep)


def test_paused_trials_that_are_given_up_end_honestly_and_for_good(tmp_path: Path) -> None:
    ranges, search, budget = CASES["paused"]
    sweep = Sweep(tmp_path, ranges, search)
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
        assert sweep._is_kept(trial.trial_id, last) is (last in kept)
    waiting = Counter(
        trial.measurements[-1].rung
        for trial in sweep.ledger.trials()
        if trial.state is TrialState.PAUSED
    )
    assert max(waiting.values()) <= 4 + (search.generation or 0)
