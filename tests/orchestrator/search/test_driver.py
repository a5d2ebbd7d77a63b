"""The driver keeps its budget, loses nothing, and decides alike whatever happens around it."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from math import inf
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory

import optuna
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from optuna.trial import TrialState as StudyState

from orchestrator.search.chance import Chance
from orchestrator.search.config import Budget
from orchestrator.search.driver import HOPELESS_FAILURES, Driver, Idle
from orchestrator.search.halving import Halving
from orchestrator.search.no_race import NoRace
from orchestrator.search.race import FINISH_SHARE, WAITING, Race
from orchestrator.search.sampler import StudySampler
from orchestrator.search.strategy import Decision, Scheduler, Standing, Strategy, Verdict
from orchestrator.search.tpe import tpe
from orchestrator.store.journal import Journal
from orchestrator.store.ledger import Ledger, TrialRecord, TrialState
from orchestrator.store.retention import CheckpointKeeper
from search_spaces.methods.filter_pruning import filter_pruning
from search_spaces.problem import Problem
from search_spaces.recipe import Recipe
from tests.orchestrator.fake_trials import LEVELS, Clock, disk, measurement
from trainables.measurement import Measurement, Outcome, Report

PROBLEM = Problem(rungs=LEVELS, native_resolution=32, train_images=50_000, classes=10)
FEW = {
    "scope": "layer",
    "optimizer": "sgd",
    "schedule": "cosine",
    "weight_decay": 1e-4,
    "batch_size": 32,
    "label_smoothing": 0.0,
    "layer_decay": 1.0,
    "trainable_depth": 1.0,
    "resolution": 32,
    "augmentation": 0.0,
    "mixing": "none",
}
"""Leaves few parameters to search, which is faster."""

NO_LUCK = Chance(images=1000, most_common=1, min_peers=1)
"""So many classes that whatever a trial measures is better than guessing."""


HALVING = Halving(reduction_factor=2, min_peers=2)
RACE = Race(lowest=len(LEVELS) - 1)
"""It pauses trials at every rung below the top, as where a space knows no lower aim."""
CLIMB = Race()
"""Its trials end at the rung that they aim at, and recipes are raised."""


def error_of(recipe: Recipe, rung: int) -> float:
    """A task that likes a ratio of 0.4 and compute."""
    miss = (float(recipe.settings["pruning_ratio"]) - 0.4) ** 2 + abs(recipe.learning_rate - 0.02)
    return min(1.0, 0.1 + miss + 0.2 / (1 + rung))


def last_rung(recipe: Recipe) -> int:
    return LEVELS.index(recipe.target_flops)


class Sweep:
    """A sweep whose trials are numbers: one driver after another over the same folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.clock = Clock()

    def driver(
        self,
        *,
        budget: Budget,
        scheduler: Scheduler | None = None,
        generation: int | None = None,
        max_failures: int = 0,
        chance: Chance = NO_LUCK,
        startup_trials: int = 100,
        confirm: float = 0.0,
        seed: int = 0,
    ) -> Driver:
        """The driver of a new process: everything is read back from the folder."""
        self.journal = Journal(disk(self.folder), "journal")
        self.ledger = Ledger(self.journal, clock=self.clock)
        self.ledger.open(sweep_id="sweep", validation_images=500)
        sampler = StudySampler(
            study_path=self.folder / "optuna.journal",
            sweep_id="sweep",
            space=filter_pruning,
            ranges=FEW,
            problem=PROBLEM,
            seed=seed,
            draws=tpe(startup_trials=startup_trials),
        )
        sampler.reconcile(self.ledger.trials())
        self.study = sampler._study
        return Driver(
            ledger=self.ledger,
            strategy=Strategy(
                sampler=sampler,
                scheduler=scheduler or NoRace(),
                judges=(chance,),
                generation=generation,
            ),
            keeper=CheckpointKeeper(self.ledger, (self.folder / "trials").as_uri()),
            budget=budget,
            levels=LEVELS,
            seed=seed,
            max_failures=max_failures,
            confirm=confirm,
            clock=self.clock,
        )

    def die(self) -> None:
        """The driver is gone; what it had written stays."""
        self.journal.close()

    def recipes(self) -> list[Recipe]:
        return [trial.recipe for trial in self.ledger.trials()]


@dataclass
class Slots:
    """Runs trials side by side and lets chance say which reports first."""

    driver: Driver
    random: Random = field(default_factory=lambda: Random(0))
    concurrent: int = 3
    error_of: Callable[[Recipe, int], float] = error_of
    running: dict[str, tuple[TrialRecord, int]] = field(default_factory=dict)
    """Trial and the rung it reports next."""
    served: list[str] = field(default_factory=list)

    def run(self, *, reports: float = inf) -> None:
        """Until the budget is spent, or so many reports were made."""
        while reports > 0:
            idle = self._fill()
            if not self.running:
                assert idle is Idle.FINISHED  # to wait for nobody would be to wait for ever
                return
            self._step()
            reports -= 1

    def _fill(self) -> Idle | None:
        while len(self.running) < self.concurrent:
            trial = self.driver.next_trial()
            if isinstance(trial, Idle):
                return trial
            self.served.append(trial.trial_id)
            # a trial that goes on reports its newest rung once more, as the trainable does
            newest = trial.measurements[-1].rung if trial.measurements else 0
            self.running[trial.trial_id] = (trial, newest)
        return None

    def _step(self) -> None:
        trial_id = self.random.choice(sorted(self.running))
        trial, rung = self.running[trial_id]
        over = rung == last_rung(trial.recipe)
        decision = self.driver.report(
            trial_id, reported(rung, self.error_of(trial.recipe, rung), over=over)
        )
        self.running[trial_id] = (trial, rung + 1)
        if over:
            assert decision is Decision.STOP
        if decision is not Decision.CONTINUE:
            del self.running[trial_id]


def measured(rung: int, error: float) -> Measurement:
    """A little below the level, as whole steps come out."""
    share = 0.97
    before = LEVELS[rung - 1] * share if rung else 0.0
    return measurement(
        rung,
        error,
        train_flops=LEVELS[rung] * share,
        executed_flops=LEVELS[rung] * share - before,
    )


def reported(rung: int, error: float, *, over: bool = False) -> Report:
    outcome = Outcome.COMPLETE if over else Outcome.RUNNING
    return Report(outcome=outcome, measurement=measured(rung, error))


INFEASIBLE = Report(outcome=Outcome.INFEASIBLE, reason="so")


@pytest.fixture
def sweep(tmp_path: Path) -> Iterator[Sweep]:
    sweep = Sweep(tmp_path)
    yield sweep
    sweep.die()


def served(driver: Driver) -> TrialRecord:
    trial = driver.next_trial()
    assert isinstance(trial, TrialRecord)
    return trial


def report(driver: Driver, trial: TrialRecord, rung: int = 0, error: float = 0.5) -> Decision:
    over = rung == last_rung(trial.recipe)
    return driver.report(trial.trial_id, reported(rung, error, over=over))


# budgets


def test_a_budget_of_trials_is_spent_exactly(sweep: Sweep) -> None:
    Slots(sweep.driver(budget=Budget(trials=7))).run()
    trials = sweep.ledger.trials()
    assert [trial.number for trial in trials] == list(range(7))
    assert all(trial.state is TrialState.COMPLETE for trial in trials)
    assert len({trial.seed for trial in trials}) == 7


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    budget=st.floats(5e8, 6e10),
    concurrent=st.integers(1, 4),
    seed=st.integers(0, 10_000),
    generation=st.sampled_from([None, 3]),
    scheduler=st.sampled_from([NoRace(), HALVING, RACE]),
    confirm=st.sampled_from([0.0, 0.05, 0.4]),
)
def test_a_budget_of_compute_is_never_exceeded_and_never_left_unused(
    budget: float,
    concurrent: int,
    seed: int,
    generation: int | None,
    scheduler: Scheduler,
    confirm: float,
) -> None:
    with TemporaryDirectory() as folder:
        sweep = Sweep(Path(folder))
        driver = sweep.driver(
            budget=Budget(sweep_flops=budget, trials=40),
            seed=seed,
            generation=generation,
            scheduler=scheduler,
            confirm=confirm,
        )
        Slots(driver, random=Random(seed), concurrent=concurrent).run()
        sweep.die()
    assert sweep.ledger.sweep_flops <= budget
    confirming = [trial for trial in sweep.ledger.trials() if trial.confirms]
    assert sum(trial.executed_flops for trial in confirming) <= confirm * budget
    assert len(confirming) <= confirm * 40
    assert not any(trial.state is TrialState.RUNNING for trial in sweep.ledger.trials())
    assert scheduler is RACE or all(trial.finished for trial in sweep.ledger.trials())
    if len(sweep.ledger.trials()) < 40:
        spare = LEVELS[0] if scheduler is not RACE else max(LEVELS[-1], FINISH_SHARE * budget)
        assert budget - sweep.ledger.sweep_flops < spare


def test_wall_time_pauses_running_trials_and_leaves_them_unfinished(sweep: Sweep) -> None:
    driver = sweep.driver(budget=Budget(wall_time=60))
    trials = [served(driver) for _ in range(4)]
    long = next(trial for trial in trials if last_rung(trial.recipe) > 0)
    sweep.clock.now += 61
    assert report(driver, long) is Decision.PAUSE
    assert driver.next_trial() is Idle.FINISHED
    assert not sweep.ledger.trial(long.trial_id).finished
    sweep.die()

    driver = sweep.driver(budget=Budget(wall_time=60))  # the same command: the time is spent
    assert driver.next_trial() is Idle.FINISHED
    sweep.die()

    driver = sweep.driver(budget=Budget(wall_time=120, trials=4))
    Slots(driver).run()
    assert all(trial.state is TrialState.COMPLETE for trial in sweep.ledger.trials())
    assert len(sweep.ledger.trials()) == 4


def test_wall_time_between_two_drivers_does_not_count(sweep: Sweep) -> None:
    driver = sweep.driver(budget=Budget(wall_time=60))
    sweep.clock.now += 50
    served(driver)
    sweep.die()
    sweep.clock.now += 10_000
    driver = sweep.driver(budget=Budget(wall_time=60))
    sweep.clock.now += 5
    assert not driver.out_of_time
    sweep.clock.now += 5
    assert driver.out_of_time


def test_a_trial_that_completes_when_time_is_up_is_complete(sweep: Sweep) -> None:
    driver = sweep.driver(budget=Budget(wall_time=60))
    trial = served(driver)
    sweep.clock.now += 61
    report(driver, trial, rung=last_rung(trial.recipe))
    assert sweep.ledger.trial(trial.trial_id).state is TrialState.COMPLETE


def test_a_budget_too_small_for_anything_runs_nothing(sweep: Sweep) -> None:
    driver = sweep.driver(budget=Budget(sweep_flops=LEVELS[0] / 2))
    assert driver.next_trial() is Idle.FINISHED
    assert sweep.ledger.trials() == ()


def test_compute_that_a_stopped_trial_leaves_is_waited_for(sweep: Sweep) -> None:
    driver = sweep.driver(budget=Budget(sweep_flops=LEVELS[-1]))
    trials = []
    while isinstance(trial := driver.next_trial(), TrialRecord):
        trials.append(trial)
    assert trial is Idle.WAIT
    for trial in trials:  # none runs: all that they were granted comes back
        driver.report(trial.trial_id, INFEASIBLE)
    assert isinstance(driver.next_trial(), TrialRecord)


# going on after a driver's death


def test_orphans_are_served_first_in_order_and_marked(sweep: Sweep) -> None:
    driver = sweep.driver(budget=Budget(trials=6))
    trials = [served(driver) for _ in range(3)]
    report(driver, trials[1], rung=last_rung(trials[1].recipe))
    sweep.die()

    driver = sweep.driver(budget=Budget(trials=6))
    again = [served(driver) for _ in range(3)]
    assert [trial.number for trial in again] == [0, 2, 3]
    assert [trial.attempt for trial in again] == [1, 1, 0]
    assert [trial.recipe for trial in again[:2]] == [trials[0].recipe, trials[2].recipe]
    assert [trial.seed for trial in again[:2]] == [trials[0].seed, trials[2].seed]


@pytest.mark.parametrize("reports", [0, 1, 4, 9, 16])
def test_a_killed_driver_costs_no_measurement_and_repeats_none(sweep: Sweep, reports: int) -> None:
    Slots(sweep.driver(budget=Budget(trials=8))).run(reports=reports)
    before = {(t.trial_id, m.rung): m for t, m, _ in sweep.ledger.readings()}
    finished = [trial.trial_id for trial in sweep.ledger.trials() if trial.finished]
    sweep.die()

    slots = Slots(sweep.driver(budget=Budget(trials=8)))
    slots.run()
    after = {(t.trial_id, m.rung): m for t, m, _ in sweep.ledger.readings()}
    assert before.items() <= after.items()
    assert not set(finished) & set(slots.served)
    trials = sweep.ledger.trials()
    assert [trial.number for trial in trials] == list(range(8))
    assert sweep.ledger.sweep_flops == pytest.approx(
        sum(LEVELS[last_rung(trial.recipe)] * 0.97 for trial in trials)
    )


def test_more_trials_extend_a_sweep_and_leave_the_old_ones_alone(sweep: Sweep) -> None:
    Slots(sweep.driver(budget=Budget(trials=4))).run()
    before = sweep.ledger.trials()
    sweep.die()
    slots = Slots(sweep.driver(budget=Budget(trials=4)))
    slots.run()
    assert slots.served == []
    sweep.die()
    slots = Slots(sweep.driver(budget=Budget(trials=7)))
    slots.run()
    assert sweep.ledger.trials()[:4] == before
    assert len(slots.served) == 3
    assert len(sweep.ledger.trials()) == 7


def test_more_compute_extends_a_sweep(sweep: Sweep) -> None:
    Slots(sweep.driver(budget=Budget(sweep_flops=2e10))).run()
    before = sweep.ledger.trials()
    sweep.die()
    Slots(sweep.driver(budget=Budget(sweep_flops=4e10))).run()
    assert sweep.ledger.trials()[: len(before)] == before
    assert 4e10 - LEVELS[0] < sweep.ledger.sweep_flops <= 4e10


# confirming the frontier


@pytest.mark.parametrize("scheduler", [NoRace(), HALVING, CLIMB])
def test_the_end_of_the_budget_confirms_cheap_points_with_another_seed(
    sweep: Sweep, scheduler: Scheduler
) -> None:
    Slots(sweep.driver(budget=Budget(trials=30), scheduler=scheduler, confirm=0.1)).run()
    trials = sweep.ledger.trials()
    confirming = [trial for trial in trials if trial.confirms]
    assert len(trials) == 30
    assert 1 <= len(confirming) <= 3
    assert min(trial.number for trial in confirming) == 27, "three are kept back, and no more"
    begun = [trial.seed for trial in trials if trial.continues is None]
    assert len(set(begun)) == len(begun)
    for trial in confirming:
        assert trial.confirms is not None
        confirmed = sweep.ledger.trial(trial.confirms)
        assert trial.recipe == confirmed.recipe
        assert trial.params == confirmed.params
        assert trial.measurements[-1].rung == confirmed.measurements[-1].rung
        assert trial.executed_flops == confirmed.measurements[-1].train_flops
    spent = [trial.executed_flops for trial in confirming]
    assert spent == sorted(spent)
    assert sweep.ledger.sweep_flops == pytest.approx(sum(trial.executed_flops for trial in trials))
    assert sweep.ledger.frontier.confirmed >= 1


def test_confirming_trials_are_told_to_the_study_as_what_they_are(sweep: Sweep) -> None:
    Slots(sweep.driver(budget=Budget(trials=20), confirm=0.1)).run()
    trial = sweep.ledger.trials()[18]
    assert trial.confirms is not None
    told = sweep.study.handle().get_trials()
    assert [t.number for t in told] == list(range(20))
    assert told[18].params == told[sweep.ledger.trial(trial.confirms).number].params
    assert told[18].user_attrs["confirms"] == trial.confirms
    assert told[18].state is StudyState.COMPLETE


@pytest.mark.parametrize("scheduler", [HALVING, CLIMB])
@pytest.mark.parametrize("generation", [None, 4])
def test_a_driver_killed_at_any_event_confirms_alike(
    tmp_path: Path, scheduler: Scheduler, generation: int | None
) -> None:
    def run(sweep: Sweep) -> list[tuple[str, int, str | None]]:
        driver = sweep.driver(
            budget=Budget(trials=16), scheduler=scheduler, generation=generation, confirm=0.2
        )
        Slots(driver, concurrent=1).run()
        sweep.die()
        return [(t.trial_id, t.seed, t.confirms) for t in sweep.ledger.trials()]

    (tmp_path / "whole").mkdir()
    whole = run(Sweep(tmp_path / "whole"))
    assert any(confirms for _, _, confirms in whole)
    (segment,) = (tmp_path / "whole" / "journal").iterdir()
    lines = segment.read_bytes().splitlines(keepends=True)
    late = next(n for n, line in enumerate(lines) if b'"number": 11' in line)
    for kept in range(late, len(lines)):
        folder = tmp_path / str(kept)
        (folder / "journal").mkdir(parents=True)
        (folder / "journal" / segment.name).write_bytes(b"".join(lines[:kept]))
        assert run(Sweep(folder)) == whole, f"killed after {kept} events"


def test_an_extended_sweep_goes_on_and_confirms_what_is_new(sweep: Sweep) -> None:
    for trials in (20, 40):
        Slots(sweep.driver(budget=Budget(trials=trials), confirm=0.1)).run()
        sweep.die()
    confirming = [trial for trial in sweep.ledger.trials() if trial.confirms]
    assert [trial.number for trial in confirming if trial.number < 20] == [18, 19]
    assert [trial.number for trial in confirming if trial.number >= 20][:1] == [38]
    assert len({trial.confirms for trial in confirming}) == len(confirming)


def test_what_is_not_needed_to_confirm_is_searched_with(sweep: Sweep) -> None:
    """The cheapest recipe takes a rung's FLOPs, of which the share holds none."""
    budget = Budget(sweep_flops=9 * LEVELS[0])
    Slots(sweep.driver(budget=budget, confirm=0.1)).run()
    assert not any(trial.confirms for trial in sweep.ledger.trials())
    assert 9 * LEVELS[0] - sweep.ledger.sweep_flops < LEVELS[0]


def test_the_last_of_the_wall_time_confirms(sweep: Sweep) -> None:
    driver = sweep.driver(budget=Budget(wall_time=100), confirm=0.05)
    first = served(driver)
    report(driver, first, rung=last_rung(first.recipe))
    sweep.clock.now += 94
    assert served(driver).confirms is None
    sweep.clock.now += 2
    assert served(driver).confirms == first.trial_id
    assert served(driver).confirms is None, "nothing is left to confirm"


# generations


def swept(folder: Path, order: int, *, scheduler: Scheduler | None = None) -> list[Recipe]:
    """The recipes of a sweep in generations whose trials report in the given order."""
    folder.mkdir()
    sweep = Sweep(folder)
    driver = sweep.driver(
        budget=Budget(trials=20), generation=5, startup_trials=5, scheduler=scheduler
    )
    Slots(driver, random=Random(order), concurrent=1 + order % 4).run()
    sweep.die()
    return sweep.recipes()


@pytest.mark.parametrize("scheduler", [Halving(reduction_factor=2, min_peers=3), RACE])
def test_generations_give_the_same_recipes_in_whatever_order_trials_report(
    tmp_path: Path, scheduler: Scheduler
) -> None:
    first, *others = [swept(tmp_path / str(n), n, scheduler=scheduler) for n in range(4)]
    assert all(other == first for other in others)
    assert len({recipe.recipe_id for recipe in first}) == 20


@pytest.mark.parametrize("reports", [0, 1, 6, 14, 23])
def test_generations_survive_a_restart(tmp_path: Path, sweep: Sweep, reports: int) -> None:
    whole = swept(tmp_path / "whole", 0)
    for part in (reports, inf):
        driver = sweep.driver(budget=Budget(trials=20), generation=5, startup_trials=5)
        Slots(driver, random=Random(reports)).run(reports=part)
        sweep.die()
    assert sweep.recipes() == whole


def test_a_generation_torn_while_it_was_drawn_is_drawn_whole_before_it_runs(
    tmp_path: Path, sweep: Sweep
) -> None:
    whole = swept(tmp_path / "whole", 0)
    driver = sweep.driver(budget=Budget(trials=20), generation=5, startup_trials=5)
    Slots(driver).run()
    sweep.die()
    (segment,) = (sweep.folder / "journal").iterdir()
    lines = segment.read_bytes().splitlines(keepends=True)
    suggested = [n for n, line in enumerate(lines) if b'"event": "suggested"' in line]
    segment.write_bytes(b"".join(lines[: suggested[12] + 1]))  # 3 of the third generation

    Slots(sweep.driver(budget=Budget(trials=20), generation=5, startup_trials=5)).run()
    assert sweep.recipes() == whole


def test_a_generation_waits_for_the_one_before(sweep: Sweep) -> None:
    driver = sweep.driver(budget=Budget(trials=6), generation=3)
    first = [served(driver) for _ in range(3)]
    assert driver.next_trial() is Idle.WAIT
    for trial in first[:2]:
        report(driver, trial, rung=last_rung(trial.recipe))
    assert driver.next_trial() is Idle.WAIT
    report(driver, first[2], rung=last_rung(first[2].recipe))
    assert served(driver).number == 3


def test_a_generation_cut_by_the_budget_is_not_filled_up_while_it_runs(sweep: Sweep) -> None:
    """Whether compute comes back early enough would depend on which trial reports first."""
    driver = sweep.driver(budget=Budget(sweep_flops=2 * LEVELS[-1]), generation=30)
    trials = []
    while isinstance(trial := driver.next_trial(), TrialRecord):
        trials.append(trial)
    assert len(trials) < 30
    driver.report(trials[0].trial_id, INFEASIBLE)
    assert driver.next_trial() is Idle.WAIT


class Recorder(Halving):
    """Decides as ever and keeps what it was shown."""

    def __init__(self) -> None:
        super().__init__(reduction_factor=2, min_peers=1)
        self.seen: list[tuple[float, list[float]]] = []

    def judge(self, standing: Standing) -> Verdict:
        self.seen.append((standing.measurement.val_error, sorted(standing.peers)))
        return super().judge(standing)


def test_in_generations_a_trial_races_those_of_earlier_ones_alone(sweep: Sweep) -> None:
    halving = Recorder()
    driver = sweep.driver(budget=Budget(trials=4), generation=2, scheduler=halving)
    for generation in range(2):
        trials = [served(driver) for _ in range(2)]
        for place, trial in enumerate(trials):
            error = 0.1 * (1 + 2 * generation + place)
            driver.report(trial.trial_id, reported(0, error))
        for trial in trials:
            if not sweep.ledger.trial(trial.trial_id).finished:
                driver.failed(trial.trial_id, reason="so")
    assert [(round(e, 1), [round(p, 1) for p in peers]) for e, peers in halving.seen] == [
        (0.1, [0.1]),
        (0.2, [0.2]),
        (0.3, [0.1, 0.2, 0.3]),
        (0.4, [0.1, 0.2, 0.4]),
    ]


def test_without_generations_a_trial_races_everyone(sweep: Sweep) -> None:
    halving = Recorder()
    driver = sweep.driver(budget=Budget(trials=3), scheduler=halving)
    for error in (0.1, 0.2, 0.3):
        trial = served(driver)
        driver.report(trial.trial_id, reported(0, error))
    assert [peers for _, peers in halving.seen] == [[0.1], [0.1, 0.2], [0.1, 0.2, 0.3]]


# trials that pause


def promoted(sweep: Sweep, *, budget: Budget) -> tuple[Driver, TrialRecord]:
    """A trial that was paused at rung 0 and is handed out again because others were worse."""
    driver = sweep.driver(budget=budget, scheduler=RACE)
    trials = [served(driver) for _ in range(20)]
    first, *others = [trial for trial in trials if last_rung(trial.recipe) > 1]
    assert report(driver, first, error=0.1) is Decision.PAUSE, "nobody is worse"
    assert sweep.ledger.trial(first.trial_id).state is TrialState.PAUSED
    for number, trial in enumerate(others[:2]):
        assert report(driver, trial, error=0.5 + number / 10) is Decision.PAUSE
    again = served(driver)
    assert again.trial_id == first.trial_id
    return driver, again


def test_a_paused_trial_is_handed_out_again_and_goes_on(sweep: Sweep) -> None:
    driver, trial = promoted(sweep, budget=Budget(trials=20))
    assert (trial.state, trial.attempt) == (TrialState.RUNNING, 0)
    before = sweep.ledger.sweep_flops
    assert report(driver, trial, error=0.1) is Decision.CONTINUE, "it repeats its last report"
    assert sweep.ledger.sweep_flops == before
    report(driver, trial, rung=1, error=0.05)
    assert [m.rung for m in sweep.ledger.trial(trial.trial_id).measurements] == [0, 1]


def test_a_promotion_outlives_the_loss_of_its_worker(sweep: Sweep) -> None:
    driver, trial = promoted(sweep, budget=Budget(trials=20))
    report(driver, trial, error=0.1)
    driver.failed(trial.trial_id, reason="its node was taken", preempted=True)
    again = served(driver)
    assert (again.trial_id, again.attempt) == (trial.trial_id, 1)
    assert report(driver, again, error=0.1) is Decision.CONTINUE


def test_the_checkpoint_of_a_paused_trial_is_kept_and_no_older_one(sweep: Sweep) -> None:
    driver, trial = promoted(sweep, budget=Budget(trials=20))
    folder = sweep.folder / "trials" / trial.trial_id
    for rung in (0, 1):
        (folder / f"rung-{rung:03d}").mkdir(parents=True)
    report(driver, trial, error=0.1)
    leader = next(t for t in sweep.ledger.trials() if not t.measurements)
    report(driver, leader, rung=0, error=0.0)  # takes the frontier's place at rung 0
    assert report(driver, trial, rung=1, error=0.9) is Decision.PAUSE
    assert [path.name for path in folder.iterdir()] == ["rung-001"]


@pytest.mark.parametrize("reports", [1, 5, 12, 20])
def test_paused_trials_wait_through_a_restart(sweep: Sweep, reports: int) -> None:
    Slots(sweep.driver(budget=Budget(trials=12), scheduler=RACE)).run(reports=reports)
    states = {t.trial_id: t.state for t in sweep.ledger.trials()}
    sweep.die()
    driver = sweep.driver(budget=Budget(trials=12), scheduler=RACE)
    assert {t.trial_id: t.state for t in sweep.ledger.trials()} == states
    slots = Slots(driver)
    slots.run()
    running = [trial_id for trial_id, state in states.items() if state is TrialState.RUNNING]
    assert slots.served[: len(running)] == running, "the interrupted go first"
    rungs = [[m.rung for m in trial.measurements] for trial in sweep.ledger.trials()]
    assert all(curve == list(range(len(curve))) for curve in rungs)
    assert len(rungs) == 12


def test_another_scheduler_goes_on_with_those_that_were_left_paused(sweep: Sweep) -> None:
    Slots(sweep.driver(budget=Budget(trials=8), scheduler=RACE)).run()
    assert any(t.state is TrialState.PAUSED for t in sweep.ledger.trials())
    sweep.die()
    Slots(sweep.driver(budget=Budget(trials=8))).run()
    assert all(t.state is TrialState.COMPLETE for t in sweep.ledger.trials())


def test_more_compute_promotes_those_that_waited_for_it(sweep: Sweep) -> None:
    Slots(sweep.driver(budget=Budget(sweep_flops=4e10), scheduler=RACE)).run()
    waiting = {t.trial_id for t in sweep.ledger.trials() if t.state is TrialState.PAUSED}
    sweep.die()
    slots = Slots(sweep.driver(budget=Budget(sweep_flops=1.2e11), scheduler=RACE))
    slots.run()
    assert waiting & set(slots.served)
    assert sweep.ledger.sweep_flops <= 1.2e11


def test_a_paused_trial_that_many_beat_is_given_up_for_good(sweep: Sweep) -> None:
    driver = sweep.driver(budget=Budget(trials=WAITING + 1), scheduler=RACE)
    worst, *others = [served(driver) for _ in range(WAITING + 1)]
    for number, trial in enumerate([worst, *others]):
        (sweep.folder / "trials" / trial.trial_id / "rung-000").mkdir(parents=True)
        assert sweep.ledger.trial(worst.trial_id).state is not TrialState.HALVED
        assert report(driver, trial, error=0.9 - number / 100) is Decision.PAUSE
    given_up = sweep.ledger.trial(worst.trial_id)
    assert (given_up.state, given_up.reason) == (
        TrialState.HALVED,
        f"{WAITING} better trials wait at rung 0: its checkpoint is dropped",
    )
    assert study_state(sweep, worst.number) is StudyState.COMPLETE
    kept = {path.name for path in (sweep.folder / "trials").iterdir()}
    assert kept == {trial.trial_id for trial in others}
    sweep.die()
    slots = Slots(sweep.driver(budget=Budget(trials=WAITING + 1)))  # whoever waits goes on
    slots.run()
    assert set(slots.served) == {trial.trial_id for trial in others}


# what becomes of trials


def test_a_trial_that_others_beat_is_stopped_and_says_where(sweep: Sweep) -> None:
    driver = sweep.driver(budget=Budget(trials=30), scheduler=Recorder())
    trials = (served(driver) for _ in range(20))
    first, second, *_ = (trial for trial in trials if last_rung(trial.recipe) > 0)
    assert report(driver, first, error=0.1) is Decision.CONTINUE
    assert report(driver, second, error=0.2) is Decision.STOP
    stopped = sweep.ledger.trial(second.trial_id)
    assert stopped.state is TrialState.HALVED
    assert stopped.reason == "others were better at rung 0"


def study_state(sweep: Sweep, number: int) -> StudyState:
    study: optuna.Study = sweep.study.handle()
    return study.get_trials()[number].state


@pytest.mark.parametrize(
    ("outcome", "state"),
    [
        (Outcome.INFEASIBLE, TrialState.INFEASIBLE),
        (Outcome.DIVERGED, TrialState.DIVERGED),
    ],
)
def test_a_trial_without_a_measurement_is_recorded_paid_for_and_told(
    sweep: Sweep, outcome: Outcome, state: TrialState
) -> None:
    driver = sweep.driver(budget=Budget(trials=2))
    trial = served(driver)
    decision = driver.report(
        trial.trial_id,
        Report(outcome=outcome, unmeasured_flops=3e8, reason="layer4 has no filter left"),
    )
    assert decision is Decision.STOP
    known = sweep.ledger.trial(trial.trial_id)
    assert (known.state, known.reason) == (state, "layer4 has no filter left")
    assert sweep.ledger.sweep_flops == 3e8
    assert study_state(sweep, 0) is StudyState.COMPLETE


TEN_CLASSES = Chance(images=1000, most_common=100, min_peers=4)


@pytest.mark.parametrize("over", [False, True], ids=["rungs ahead", "last rung"])
def test_a_trial_at_chance_where_others_learn_has_diverged(sweep: Sweep, over: bool) -> None:
    driver = sweep.driver(budget=Budget(trials=8), chance=TEN_CLASSES)
    trials = [served(driver) for _ in range(8)]
    lost = next(trial for trial in trials if (last_rung(trial.recipe) == 0) is over)
    others = [trial for trial in trials if trial is not lost][:3]
    for trial in others:
        report(driver, trial, error=0.5)
    assert report(driver, lost, error=0.9) is Decision.STOP
    known = sweep.ledger.trial(lost.trial_id)
    assert known.state is TrialState.DIVERGED
    assert known.reason == (
        "an error of 0.900 at rung 0 is no better than guessing (0.900), where 3 of 4 trials have "
        "learnt"
    )
    assert [m.val_error for m in known.measurements] == [0.9], "what was measured is kept"
    told = sweep.study.handle().get_trials()[lost.number]
    assert (told.state, told.values[0]) == (StudyState.COMPLETE, 1.0), "with a penalty"
    assert {sweep.ledger.trial(t.trial_id).state for t in others} <= {
        TrialState.RUNNING,
        TrialState.COMPLETE,
    }


def test_where_nobody_learns_nobody_diverges(sweep: Sweep) -> None:
    driver = sweep.driver(budget=Budget(trials=6), chance=TEN_CLASSES)
    for trial in [served(driver) for _ in range(6)]:
        report(driver, trial, error=0.9)
    assert all(t.state is not TrialState.DIVERGED for t in sweep.ledger.trials())


def test_a_generation_is_judged_by_the_ones_before_it(sweep: Sweep) -> None:
    driver = sweep.driver(budget=Budget(trials=4), generation=4, chance=TEN_CLASSES)
    trials = [served(driver) for _ in range(4)]
    for trial in trials[:3]:
        report(driver, trial, error=0.5)
    report(driver, trials[3], error=0.9)
    state = sweep.ledger.trial(trials[3].trial_id).state
    assert state is not TrialState.DIVERGED, "in another order it would be judged by nobody"


def test_a_trial_that_raises_is_the_next_to_start_until_it_has_failed(sweep: Sweep) -> None:
    driver = sweep.driver(budget=Budget(trials=5), max_failures=1)
    trial, other = served(driver), served(driver)
    driver.failed(trial.trial_id, reason="RuntimeError: out of memory")
    assert not sweep.ledger.trial(trial.trial_id).finished
    again = served(driver)
    assert (again.trial_id, again.attempt) == (trial.trial_id, 1)
    assert again.recipe == trial.recipe

    driver.failed(trial.trial_id, reason="RuntimeError: out of memory again")
    known = sweep.ledger.trial(trial.trial_id)
    assert (known.state, known.reason) == (
        TrialState.FAILED,
        "RuntimeError: out of memory again",
    )
    assert study_state(sweep, 0) is StudyState.FAIL
    assert not sweep.ledger.trial(other.trial_id).finished
    assert served(driver).number == 2


def test_a_preempted_trial_has_not_failed_however_often(sweep: Sweep) -> None:
    driver = sweep.driver(budget=Budget(trials=1), max_failures=0)
    for attempt in range(5):
        trial = served(driver)
        assert (trial.number, trial.attempt) == (0, attempt)
        driver.failed(trial.trial_id, reason="its node was taken", preempted=True)
    assert not sweep.ledger.trial(trial.trial_id).finished


def test_a_generation_waits_for_a_trial_that_is_set_up_again(sweep: Sweep) -> None:
    driver = sweep.driver(budget=Budget(trials=4), generation=2, max_failures=1)
    first, second = served(driver), served(driver)
    report(driver, second, rung=last_rung(second.recipe))
    driver.failed(first.trial_id, reason="so")
    assert served(driver).trial_id == first.trial_id
    assert driver.next_trial() is Idle.WAIT


def test_a_sweep_in_which_nothing_works_gives_up(sweep: Sweep) -> None:
    driver = sweep.driver(budget=Budget(trials=100))
    for _ in range(HOPELESS_FAILURES):
        assert not driver.hopeless
        driver.failed(served(driver).trial_id, reason="OSError: no such file")
    assert driver.hopeless
    assert driver.next_trial() is Idle.FINISHED


def test_one_measurement_is_enough_to_go_on_after_any_failures(sweep: Sweep) -> None:
    driver = sweep.driver(budget=Budget(trials=100))
    trial = served(driver)
    report(driver, trial, rung=0)
    for _ in range(2 * HOPELESS_FAILURES):
        driver.failed(served(driver).trial_id, reason="so")
    assert not driver.hopeless


def test_checkpoints_are_tidied_as_reports_come_in(sweep: Sweep) -> None:
    driver = sweep.driver(budget=Budget(trials=20))
    trial = next(t for t in (served(driver) for _ in range(20)) if last_rung(t.recipe) > 1)
    folder = sweep.folder / "trials" / trial.trial_id
    (folder / "rung-000").mkdir(parents=True)
    report(driver, trial, rung=0, error=0.5)
    report(driver, served(driver), rung=0, error=0.1)  # beats it
    (folder / "rung-001").mkdir()
    report(driver, trial, rung=1, error=0.5)
    assert [path.name for path in folder.iterdir()] == ["rung-001"]
