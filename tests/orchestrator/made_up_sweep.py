"""A sweep of made-up trials: the product's own driver, journal, study and checkpoints on a disk."""

from dataclasses import dataclass, field
from pathlib import Path
from random import Random

from orchestrator.search.chance import Chance
from orchestrator.search.config import Budget, SearchConfig
from orchestrator.search.driver import Driver, Idle
from orchestrator.search.strategies import build_strategy
from orchestrator.search.strategy import Decision
from orchestrator.store.journal import Journal
from orchestrator.store.ledger import Ledger, TrialRecord
from orchestrator.store.retention import CheckpointKeeper
from search_spaces.methods.filter_pruning import filter_pruning
from search_spaces.problem import Problem
from search_spaces.ranges import Ranges
from tests.orchestrator.fake_trials import disk
from tests.orchestrator.made_up_trials import IMAGES, MadeUpTrial
from trainables.checkpoints import STATE, checkpoint_folder
from trainables.measurement import Report

TEN_CLASSES = Chance(images=IMAGES, most_common=IMAGES // 10, min_peers=4)


@dataclass
class MadeUpSweep:
    """A sweep in a folder, whose trials are made up and whose checkpoints are empty files.

    Chance says which of the trials that run reports next.
    """

    folder: Path
    ranges: Ranges
    search: SearchConfig
    problem: Problem
    concurrent: int = 3
    chance: Random = field(default_factory=lambda: Random(0))
    running: dict[str, list[Report]] = field(default_factory=dict)

    def run(self, *, budget: Budget) -> None:
        """Runs a driver until there is nothing left to do."""
        self.begin(budget=budget)
        while self.step():
            pass
        self.journal.close()

    def begin(self, *, budget: Budget) -> None:
        """Makes the driver of a new process, which reads everything back from the folder."""
        self.journal = Journal(disk(self.folder), "journal")
        self.ledger = Ledger(self.journal)
        self.ledger.open(sweep_id="sweep", validation_images=TEN_CLASSES.images)
        strategy = build_strategy(
            self.search,
            study_path=self.folder / "optuna.journal",
            sweep_id="sweep",
            space=filter_pruning,
            ranges=self.ranges,
            problem=self.problem,
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
            levels=self.problem.rungs,
            seed=0,
            confirm=self.search.confirm,
        )
        self.running.clear()

    def step(self) -> bool:
        """Gives every worker a trial and has one report; tells whether any runs."""
        if not self._fill():
            return False
        self._report()
        return True

    @property
    def trials(self) -> Path:
        """The folder of the checkpoints."""
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
            assert trial.state.finished or self.keeps(trial.trial_id, after)
        elif trial.continues is not None and (
            known := self.ledger.trial(trial.continues).measurements
        ):
            begins_at = known[-1].trunk_flops
            assert not begins_at or self.keeps(trial.continues, known[-1].rung)
        made_up = MadeUpTrial(
            recipe=trial.recipe, seed=trial.seed, levels=self.problem.rungs, begins_at=begins_at
        )
        return list(made_up.reports(after=after))

    def keeps(self, trial_id: str, rung: int) -> bool:
        """Whether the checkpoint of a rung is there."""
        return Path(checkpoint_folder(f"{self.trials}/{trial_id}", rung), STATE).exists()

    def _report(self) -> None:
        trial_id = self.chance.choice(sorted(self.running))
        report, *ahead = self.running.pop(trial_id)
        if report.measurement is not None:
            folder = Path(checkpoint_folder(f"{self.trials}/{trial_id}", report.measurement.rung))
            folder.mkdir(parents=True, exist_ok=True)
            (folder / STATE).touch()
        if self.driver.report(trial_id, report) is Decision.CONTINUE:
            self.running[trial_id] = ahead
