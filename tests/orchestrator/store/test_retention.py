"""Kept are the frontier's checkpoints and the newest of every unfinished trial, nothing else."""

from collections.abc import Iterable
from pathlib import Path

import pytest

from orchestrator.store.ledger import TrialState
from orchestrator.store.retention import CheckpointKeeper
from tests.orchestrator.fake_trials import ledger_of, record, reported
from trainables.checkpoints import STATE, checkpoint_folder


@pytest.fixture
def trials(tmp_path: Path) -> Path:
    return tmp_path / "a sweep" / "trials"  # a space, as a user's folder may have


def write(trials: Path, trial_id: str, rungs: Iterable[int], *, whole: bool = True) -> None:
    for rung in rungs:
        folder = Path(checkpoint_folder(str(trials / trial_id), rung))
        folder.mkdir(parents=True)
        (folder / "weights.safetensors").write_bytes(b"0")
        if whole:
            (folder / STATE).write_text("{}")


def kept(trials: Path) -> dict[str, list[int]]:
    return {
        trial.name: sorted(int(rung.name.removeprefix("rung-")) for rung in trial.iterdir())
        for trial in trials.iterdir()
    }


def test_an_unfinished_trial_keeps_its_newest_checkpoint(trials: Path) -> None:
    write(trials, "t0", [0, 1])
    ledger = ledger_of({0: [0.5, 0.6], 1: [0.1]})  # trial 1 beats both
    keeper = CheckpointKeeper(ledger, trials.as_uri())
    keeper.tidy()
    assert kept(trials) == {"t0": [1]}


def test_a_finished_trial_keeps_its_frontier_points(trials: Path) -> None:
    write(trials, "t0", [0, 1, 2])
    ledger = ledger_of({0: [0.5, 0.6, 0.4]}, finished=[0])
    CheckpointKeeper(ledger, trials.as_uri()).tidy()
    assert kept(trials) == {"t0": [0, 2]}


def test_a_finished_trial_that_keeps_nothing_loses_its_folder(trials: Path) -> None:
    write(trials, "t0", [0])
    ledger = ledger_of({0: [0.5], 1: [0.1]}, finished=[0])
    CheckpointKeeper(ledger, trials.as_uri()).tidy()
    assert kept(trials) == {}


def test_a_folder_emptied_by_an_earlier_run_goes_too(trials: Path) -> None:
    (trials / "t0").mkdir(parents=True)
    ledger = ledger_of({0: [0.5], 1: [0.1]}, finished=[0])
    CheckpointKeeper(ledger, trials.as_uri()).tidy()
    assert kept(trials) == {}


def test_a_point_is_removed_when_it_leaves_the_frontier(trials: Path) -> None:
    ledger = ledger_of({0: [], 1: []})
    keeper = CheckpointKeeper(ledger, trials.as_uri())
    for trial_id, error in (("t0", 0.5), ("t1", 0.4)):
        write(trials, trial_id, [0])
        ledger.measured(trial_id, reported(0, error))
        keeper.measured(trial_id, 0)
        ledger.finished(trial_id, TrialState.COMPLETE)
        keeper.tidy()
        assert kept(trials) == {trial_id: [0]}


def test_a_trial_that_waits_loses_what_others_have_beaten_meanwhile(trials: Path) -> None:
    write(trials, "t0", [0, 1])
    ledger = ledger_of({0: [0.5, 0.4], 1: []})
    ledger.paused("t0")
    keeper = CheckpointKeeper(ledger, trials.as_uri())
    keeper.tidy()
    assert kept(trials) == {"t0": [0, 1]}
    ledger.measured("t1", reported(0, 0.3))
    keeper.tidy()
    assert kept(trials) == {"t0": [1]}


def test_a_trial_that_ends_without_another_measurement_keeps_its_newest_no_longer(
    trials: Path,
) -> None:
    write(trials, "t0", [0, 1])
    ledger = ledger_of({0: [0.5, 0.6]})
    keeper = CheckpointKeeper(ledger, trials.as_uri())
    keeper.tidy()
    assert kept(trials) == {"t0": [0, 1]}
    ledger.finished("t0", TrialState.FAILED, reason="node lost")
    keeper.tidy()
    assert kept(trials) == {"t0": [0]}


def test_what_is_not_the_sweeps_is_left_alone(trials: Path) -> None:
    write(trials, "someone-elses", [0])
    (trials / "notes.txt").write_text("mine")
    write(trials, "t0", [0])
    (trials / "t0" / "rung-zero").mkdir()
    CheckpointKeeper(ledger_of({0: [0.5]}), trials.as_uri()).tidy()
    assert (trials / "someone-elses" / "rung-000" / STATE).exists()
    assert (trials / "notes.txt").exists()
    assert (trials / "t0" / "rung-zero").exists()


def test_a_checkpoint_that_is_gone_already_is_no_trouble(trials: Path) -> None:
    ledger = ledger_of({0: [0.5, 0.4], 1: [0.1]})
    keeper = CheckpointKeeper(ledger, trials.as_uri())  # there is no folder at all
    keeper.measured("t0", 0)
    keeper.measured("t0", 1)
    keeper.tidy()
    ledger.finished("t0", TrialState.COMPLETE)
    keeper.tidy()


def test_a_restart_finds_an_unreported_checkpoint_and_goes_on_from_it(trials: Path) -> None:
    write(trials, "t0", [0, 1])
    ledger = ledger_of({0: [0.5], 1: [0.1]})  # the driver died before rung 1 was reported
    CheckpointKeeper(ledger, trials.as_uri()).tidy()
    assert kept(trials) == {"t0": [1]}


def test_a_checkpoint_torn_by_a_kill_does_not_cost_the_whole_one_before_it(trials: Path) -> None:
    write(trials, "t0", [0])
    write(trials, "t0", [1], whole=False)
    ledger = ledger_of({0: [0.5], 1: [0.1]})
    keeper = CheckpointKeeper(ledger, trials.as_uri())
    keeper.tidy()
    assert kept(trials) == {"t0": [0]}

    write(trials, "t0", [1])  # the trial goes on and writes it again
    ledger.measured("t0", reported(1, 0.4))
    keeper.measured("t0", 1)
    keeper.tidy()
    assert kept(trials) == {"t0": [1]}


def test_a_folder_that_cannot_be_removed_is_tried_again(trials: Path) -> None:
    write(trials, "t0", [0])
    ledger = ledger_of({0: [0.5], 1: [0.1]}, finished=[0])
    keeper = CheckpointKeeper(ledger, trials.as_uri())
    (trials / "t0").rename(trials / "aside")
    (trials / "t0").write_text("a file where a folder was")  # delete_dir refuses it
    keeper.tidy()
    (trials / "t0").unlink()
    (trials / "aside").rename(trials / "t0")
    keeper.tidy()
    assert kept(trials) == {}


def test_a_trial_suggested_later_is_known(trials: Path) -> None:
    ledger = ledger_of({0: [0.1]})
    keeper = CheckpointKeeper(ledger, trials.as_uri())
    ledger.suggested(record(1))
    write(trials, "t1", [0, 1])
    keeper.measured("t1", 0)
    keeper.measured("t1", 1)
    keeper.tidy()
    assert kept(trials) == {"t1": [1]}
