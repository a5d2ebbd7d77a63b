"""The study is what the ledger says, whatever happened to its file."""

import logging
import time
from collections.abc import Callable
from dataclasses import replace
from math import inf, isfinite, log10, nan
from pathlib import Path

import optuna
import pytest
from optuna.samplers import RandomSampler
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial
from optuna.trial import TrialState as StudyState

from orchestrator.search.study import OBJECTIVES, SweepStudy
from orchestrator.store.ledger import TrialRecord, TrialState
from search_spaces.draws import draw
from search_spaces.methods.filter_pruning import filter_pruning
from search_spaces.problem import Problem
from trainables.measurement import Measurement

PROBLEM = Problem(rungs=(1e9, 2e9, 4e9), native_resolution=32, train_images=50_000, classes=10)


def measured(val_error: float, train_flops: float) -> Measurement:
    return Measurement(
        rung=0,
        train_flops=train_flops,
        executed_flops=train_flops,
        eval_flops=0.0,
        inference_flops=1e6,
        params=1000,
        updated_params=1000,
        val_error=val_error,
        val_loss=1.0,
        train_seconds=1.0,
        images_seen=1000,
    )


def begun(study: SweepStudy, number: int) -> TrialRecord:
    """Trial `number`, begun in the study, as the ledger has it."""
    drawn = draw(filter_pruning, {}, PROBLEM, RandomSampler(seed=number))
    study.begin(drawn)
    return TrialRecord(
        trial_id=f"{number}-{drawn.recipe.recipe_id}",
        number=number,
        recipe=drawn.recipe,
        seed=number,
        suggested_at=0.0,
        params=drawn.params,
        distributions={
            name: optuna.distributions.distribution_to_json(distribution)
            for name, distribution in drawn.distributions.items()
        },
    )


def ended(record: TrialRecord, state: TrialState, *curve: Measurement) -> TrialRecord:
    return replace(record, state=state, measurements=curve)


def sweep(path: Path) -> list[TrialRecord]:
    """A study at `path` with a trial in every state, and the ledger's records of them."""
    study = SweepStudy(path, "sweep")
    records = [begun(study, number) for number in range(7)]
    records = [
        ended(records[0], TrialState.COMPLETE, measured(0.5, 1e9), measured(0.25, 2e9)),
        ended(records[1], TrialState.HALVED, measured(0.75, 1e9)),
        ended(records[2], TrialState.INFEASIBLE),
        ended(records[3], TrialState.DIVERGED, measured(0.9, 1e9)),
        ended(records[4], TrialState.FAILED, measured(0.1, 1e9)),
        records[5],
        ended(records[6], TrialState.COMPLETE, measured(0.3, 1e9)),
    ]
    for record in records:
        study.tell(record)
    return records


def study_at(path: Path) -> optuna.Study:
    """The study as Optuna's own tools read it."""
    storage = JournalStorage(JournalFileBackend(str(path)))
    return optuna.load_study(study_name="sweep", storage=storage)


def on_disk(path: Path) -> list[FrozenTrial]:
    """The study's trials as Optuna's own tools read them."""
    return study_at(path).get_trials()


def facts(path: Path) -> list[tuple[object, ...]]:
    return [
        (t.number, t.state, t.values, t.params, t.distributions, t.constraints, t.user_attrs)
        for t in on_disk(path)
    ]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "sweep" / "optuna.jsonl"


def test_every_state_is_told_as_optuna_needs_it(path: Path) -> None:
    records = sweep(path)
    trials = on_disk(path)
    penalties = [log10(record.recipe.target_flops) for record in records]
    assert [(trial.state, trial.values) for trial in trials] == [
        (StudyState.COMPLETE, [0.25, log10(2e9)]),
        (StudyState.COMPLETE, [0.75, log10(1e9)]),
        (StudyState.COMPLETE, [1.0, penalties[2]]),
        (StudyState.COMPLETE, [1.0, penalties[3]]),
        (StudyState.FAIL, None),
        (StudyState.RUNNING, None),
        (StudyState.COMPLETE, [0.3, log10(1e9)]),
    ]
    assert [trial.constraints for trial in trials] == [
        {"0": 1.0} if record.state is TrialState.INFEASIBLE else {} for record in records
    ]
    assert study_at(path).directions == [StudyDirection.MINIMIZE] * 2
    assert [trial.number for trial in trials] == [record.number for record in records]
    assert [trial.params for trial in trials] == [dict(record.params) for record in records]


def test_a_trial_is_told_with_the_point_that_contributes_most(path: Path) -> None:
    study = SweepStudy(path, "sweep")
    curves = [
        [measured(0.9, 1e9), measured(0.5, 2e9)],
        [measured(0.5, 1e9), measured(0.49, 2e9)],  # hardly better for twice the compute
        [measured(0.5, 1e9), measured(0.6, 2e9)],
    ]
    for number, curve in enumerate(curves):
        study.tell(ended(begun(study, number), TrialState.COMPLETE, *curve))
    assert [trial.values for trial in on_disk(path)] == [
        [0.5, log10(2e9)],
        [0.5, log10(1e9)],
        [0.5, log10(1e9)],
    ]


def test_it_does_not_matter_which_trial_finishes_first(path: Path) -> None:
    told = []
    for order in ((0, 1, 2), (2, 0, 1)):
        study = SweepStudy(path, "sweep")
        records = [begun(study, number) for number in range(3)]
        for number in order:
            curve = [measured(0.9 - 0.1 * number, 1e9), measured(0.5 + 0.03 * number, 2e9)]
            study.tell(ended(records[number], TrialState.COMPLETE, *curve))
        told.append(facts(path))
        path.unlink()
    assert told[0] == told[1]


def test_a_trial_that_was_tested_meanwhile_changes_nothing(path: Path) -> None:
    records = sweep(path)
    before = path.read_bytes()
    curve = tuple(replace(m, test_error=0.3) for m in records[0].measurements)
    records[0] = replace(records[0], measurements=curve)
    SweepStudy(path, "sweep").reconcile(records)
    assert path.read_bytes() == before


@pytest.mark.parametrize("study_is_lost", [False, True])
def test_trials_began_and_ended_when_the_ledger_says(path: Path, *, study_is_lost: bool) -> None:
    study = SweepStudy(path, "sweep")
    record = replace(begun(study, 0), suggested_at=time.time())
    ending = ended(record, TrialState.COMPLETE, measured(0.5, 1e9))
    ending = replace(ending, finished_at=record.suggested_at + 3600.25)
    if study_is_lost:
        path.unlink()
    SweepStudy(path, "sweep").reconcile([ending])
    (trial,) = on_disk(path)
    assert trial.datetime_start is not None
    assert trial.datetime_complete is not None
    assert trial.datetime_start.timestamp() == pytest.approx(record.suggested_at, abs=5.0)
    assert trial.datetime_complete.timestamp() == pytest.approx(ending.finished_at, abs=1e-3)


def test_the_dashboard_finds_names_feasibility_and_the_story_of_each_trial(path: Path) -> None:
    records = sweep(path)
    assert study_at(path).metric_names == ["validation error", "log10 training FLOPs"]
    trials = on_disk(path)
    infeasible = [
        t.number for t in trials if any(c > 0 for c in t.system_attrs.get("constraints", []))
    ]
    assert infeasible == [2]
    assert trials[0].user_attrs == {
        "recipe_id": records[0].recipe.recipe_id,
        "method": "filter_pruning",
        "sweep": "sweep",
        "state": "complete",
        "curve": [{"train_flops": 1e9, "val_error": 0.5}, {"train_flops": 2e9, "val_error": 0.25}],
    }
    assert set(trials[5].user_attrs) == {"recipe_id", "method", "sweep"}


def test_a_trial_that_continues_another_says_why_it_ended_and_whom_it_continues(path: Path) -> None:
    study = SweepStudy(path, "sweep")
    first = ended(begun(study, 0), TrialState.COMPLETE, measured(0.5, 1e9))
    study.tell(first)
    raised = replace(first, number=1, state=TrialState.RUNNING, continues=first.trial_id)
    study.tell(raised)
    study.tell(
        ended(replace(raised, reason="loss is nan"), TrialState.DIVERGED, measured(nan, 2e9))
    )
    attributes = on_disk(path)[1].user_attrs
    assert attributes["continues"] == first.trial_id
    assert attributes["reason"] == "loss is nan"
    assert attributes["curve"] == [{"train_flops": 2e9, "val_error": None}]


@pytest.mark.parametrize("error", [nan, inf, -inf])
def test_an_error_that_is_not_finite_becomes_the_penalty(path: Path, error: float) -> None:
    study = SweepStudy(path, "sweep")
    record = begun(study, 0)
    study.tell(ended(record, TrialState.COMPLETE, measured(error, 1e9)))
    (trial,) = on_disk(path)
    assert trial.values == [1.0, log10(record.recipe.target_flops)]


def test_a_trial_that_ended_without_a_measurement_is_told_finite_values(path: Path) -> None:
    study = SweepStudy(path, "sweep")
    records = [begun(study, number) for number in range(2)]
    study.tell(ended(records[0], TrialState.COMPLETE))
    study.tell(ended(records[1], TrialState.COMPLETE, measured(0.5, 0.0)))
    assert all(isfinite(value) for trial in on_disk(path) for value in trial.values)


def test_telling_twice_is_telling_once(path: Path) -> None:
    records = sweep(path)
    before = path.read_bytes()
    study = SweepStudy(path, "sweep")
    for record in records + records:
        study.tell(record)
    assert path.read_bytes() == before


def test_a_trial_from_elsewhere_is_added_and_can_be_finished(path: Path) -> None:
    records = sweep(path)
    study = SweepStudy(path, "sweep")
    rerun = replace(records[0], number=7, state=TrialState.RUNNING, measurements=())
    study.tell(rerun)
    assert len(study) == 8
    study.tell(ended(rerun, TrialState.COMPLETE, measured(0.2, 4e9)))
    assert on_disk(path)[7].values == [0.2, log10(4e9)]


def test_a_gap_in_the_numbers_is_refused(path: Path) -> None:
    study = SweepStudy(path, "sweep")
    record = begun(study, 0)
    with pytest.raises(ValueError, match="Trial 2 was told while the study holds 1 trials; tell"):
        study.tell(replace(record, number=2))
    assert len(study) == 1


def test_a_study_that_agrees_is_left_alone(path: Path) -> None:
    records = sweep(path)
    before = path.read_bytes()
    SweepStudy(path, "sweep").reconcile(reversed(records))
    assert path.read_bytes() == before


def test_a_lost_study_is_built_anew(path: Path) -> None:
    records = sweep(path)
    before = facts(path)
    path.unlink()
    SweepStudy(path, "sweep").reconcile(records)
    assert facts(path) == before


def test_trials_that_finished_meanwhile_are_told(path: Path) -> None:
    records = sweep(path)
    records[5] = ended(records[5], TrialState.INFEASIBLE)
    SweepStudy(path, "sweep").reconcile(records)
    trial = on_disk(path)[5]
    assert trial.state is StudyState.COMPLETE
    assert trial.constraints == {"0": 1.0}


def test_a_trial_never_written_down_disappears(path: Path) -> None:
    """The driver died between asking the sampler and writing the ledger."""
    records = sweep(path)
    before = facts(path)
    begun(SweepStudy(path, "sweep"), 7)
    assert len(on_disk(path)) == 8
    SweepStudy(path, "sweep").reconcile(records)
    assert facts(path) == before


@pytest.mark.parametrize(
    "change",
    [
        lambda r: ended(r, TrialState.COMPLETE, measured(0.11, 2e9)),
        lambda r: ended(r, TrialState.COMPLETE, measured(0.25, 2.5e9)),
        lambda r: ended(r, TrialState.FAILED),
        lambda r: ended(r, TrialState.RUNNING),
        lambda r: replace(r, recipe=replace(r.recipe, label_smoothing=0.0123)),
        lambda r: replace(r, params=dict(r.params) | {"label_smoothing": 0.0123}),
    ],
)
def test_a_study_that_says_otherwise_is_built_anew(
    path: Path, change: Callable[[TrialRecord], TrialRecord], caplog: pytest.LogCaptureFixture
) -> None:
    records = sweep(path)
    records[0] = change(records[0])
    with caplog.at_level(logging.WARNING):
        SweepStudy(path, "sweep").reconcile(records)
    assert "disagrees with the ledger" in caplog.text
    fresh = path.with_name("fresh.jsonl")
    SweepStudy(fresh, "sweep").reconcile(records)
    assert facts(path) == facts(fresh)


def test_an_empty_ledger_empties_the_study(path: Path) -> None:
    sweep(path)
    study = SweepStudy(path, "sweep")
    study.reconcile([])
    assert len(study) == 0


def test_a_file_cut_anywhere_is_mended(path: Path) -> None:
    """A kill -9, a full disk or a lost page may leave any part of the file."""
    records = sweep(path)
    before, whole = facts(path), path.read_bytes()
    last_line = whole[:-1].rfind(b"\n") + 1
    cuts = {0, 1, last_line - 1, last_line, last_line + 1, len(whole) - 2, len(whole) - 1}
    for cut in sorted(cuts | set(range(0, len(whole), 2999))):
        path.write_bytes(whole[:cut])
        study = SweepStudy(path, "sweep")
        study.reconcile(records)
        begun(study, 7)
        assert facts(path)[:7] == before
        assert len(on_disk(path)) == 8


def test_a_file_without_any_one_of_its_lines_is_mended(path: Path) -> None:
    records = sweep(path)
    before, lines = facts(path), path.read_bytes().splitlines(keepends=True)
    for lost in range(len(lines)):
        path.write_bytes(b"".join(lines[:lost] + lines[lost + 1 :]))
        SweepStudy(path, "sweep").reconcile(records)
        assert facts(path) == before
        assert study_at(path).metric_names == list(OBJECTIVES)


@pytest.mark.parametrize("garbage", [b"garbage\n", b"\x00\x00\x00\n", b"{}\n", b"[1]\n", b"\n"])
@pytest.mark.parametrize("line", [0, 3, -1])
def test_garbage_in_the_file_is_mended(path: Path, garbage: bytes, line: int) -> None:
    records = sweep(path)
    before, lines = facts(path), path.read_bytes().splitlines(keepends=True)
    lines[line] = garbage
    path.write_bytes(b"".join(lines))
    SweepStudy(path, "sweep").reconcile(records)
    assert facts(path) == before


def test_a_lock_left_by_a_killed_driver_holds_nobody_up(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    records = sweep(path)
    lock = path.with_name(f"{path.name}.lock")
    lock.symlink_to(path)
    pauses: list[float] = []  # Optuna sleeps while it waits for a lock
    monkeypatch.setattr(time, "sleep", pauses.append)
    study = SweepStudy(path, "sweep")
    study.reconcile(records)
    begun(study, 7)
    assert pauses == []
    assert not lock.is_symlink()


def test_nothing_is_printed(path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    SweepStudy(path, "sweep").reconcile(sweep(path))
    assert capfd.readouterr() == ("", "")
