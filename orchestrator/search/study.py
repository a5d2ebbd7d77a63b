"""The Optuna study of a sweep: a view of the ledger that can always be built anew."""

import logging
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from math import isfinite, log10
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import json_to_distribution
from optuna.exceptions import ExperimentalWarning
from optuna.samplers import RandomSampler
from optuna.storages import JournalStorage
from optuna.trial import FrozenTrial, create_trial
from optuna.trial import TrialState as StudyState

from orchestrator.search.contribution import WORST_ERROR, Point, contribution
from orchestrator.search.study_file import StudyFile, intact_journal, journal_at
from orchestrator.store.ledger import TrialRecord, TrialState
from search_spaces.draws import Draw
from search_spaces.recipe import Recipe

_log = logging.getLogger(__name__)

OBJECTIVES = ("validation error", "log10 training FLOPs")
"""The names of the study's objectives, both to be minimised."""
CONSTRAINTS = "constraints"
"""Where a trial's constraints lie that Optuna and Optuna Dashboard both read, as a list."""
VIOLATED = [1.0]
"""The constraints of a recipe that cannot be realised; whatever is positive is violated."""
_WRITTEN_TOGETHER = 500
"""Trials of a study built anew that are written in one piece."""


class SweepStudy:
    """A study, in one journal file a sweep, whose trial n is the ledger's trial n.

    A trial enters in one line, whole, when its recipe is known, so that no half-made trial is ever
    left running. It is told with the point of its curve that contributes most, so that a trial
    which was stopped, or shone early, counts for what it brought. What Optuna Dashboard shows
    besides (how a trial ended, when, its curve) comes from the ledger too.
    """

    def __init__(self, path: Path, sweep_id: str) -> None:
        """Opens the study, new where there is none or where its file is damaged."""
        optuna.logging.set_verbosity(optuna.logging.WARNING)  # it reports every trial
        self._path = path
        self._sweep_id = sweep_id
        path.parent.mkdir(parents=True, exist_ok=True)
        # A killed driver may have left the lock; a sweep has one driver, so nobody else holds it.
        path.with_name(f"{path.name}.lock").unlink(missing_ok=True)
        journal = intact_journal(path)
        if journal is None:
            _log.warning("The Optuna study %s is damaged and starts empty.", path)
            path.unlink()
        self._open(*(journal or journal_at(path)))

    def __len__(self) -> int:
        """Returns how many trials it holds, which is the number of the next one."""
        return self._count

    def handle(self) -> optuna.Study:
        """Makes a handle to read it by, always anew, because Optuna's caches what it has read."""
        return optuna.load_study(
            study_name=self._sweep_id, storage=self._storage, sampler=RandomSampler()
        )

    def begin(self, drawn: Draw) -> None:
        """Adds the next trial, running."""
        self._add(
            create_trial(
                state=StudyState.RUNNING,
                params=dict(drawn.params),
                distributions=dict(drawn.distributions),
                user_attrs=self._recipe_attributes(drawn.recipe),
            )
        )

    def tell(self, record: TrialRecord) -> None:
        """Makes the study agree with what the ledger knows of one trial; doing it twice is once.

        A trial that did not begin here is added. Raises `ValueError` when an earlier trial is
        missing, because then the study's numbers would no longer be the ledger's.
        """
        if record.number > len(self):
            raise ValueError(
                f"Trial {record.number} was told while the study holds {len(self)} trials; "
                "tell the trials before it first."
            )
        if record.number == len(self):
            self._add(self._frozen(record))
        else:
            self._finish(record)

    def reconcile(self, records: Iterable[TrialRecord]) -> None:
        """Makes the study agree with the ledger, whose trials are numbered 0, 1, 2, ...

        A study that lags behind is brought up to date. One that holds anything the ledger does
        not (a trial begun but never written down, another recipe, another result) is built anew.
        """
        ordered = sorted(records, key=lambda record: record.number)
        if not self._agrees(ordered):
            _log.warning("The Optuna study %s disagrees with the ledger: built anew.", self._path)
            self._path.unlink(missing_ok=True)
            self._open(*journal_at(self._path))
        known = len(self)
        for record in ordered[:known]:
            self._finish(record)
        self._add(*map(self._frozen, ordered[known:]))

    def _open(self, file: StudyFile, storage: JournalStorage) -> None:
        if self._sweep_id not in optuna.get_all_study_names(storage):
            optuna.create_study(
                study_name=self._sweep_id, storage=storage, directions=["minimize", "minimize"]
            )
        self._file = file
        self._storage = storage
        self._study = self.handle()
        self._study_id = storage.get_study_id_from_name(self._sweep_id)
        self._count = storage.get_n_trials(self._study_id)
        if self._study.metric_names != list(OBJECTIVES):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ExperimentalWarning)
                self._study.set_metric_names(list(OBJECTIVES))

    def _add(self, *trials: FrozenTrial) -> None:
        """Adds the next trials; after the first, many are written at once."""
        for start in range(0, len(trials), _WRITTEN_TOGETHER):
            piece = trials[start : start + _WRITTEN_TOGETHER]
            self._study.add_trial(piece[0])  # alone, as the storage needs its first one read back
            with self._file.together():
                for trial in piece[1:]:
                    self._study.add_trial(trial)
            self._count += len(piece)

    def _finish(self, record: TrialRecord) -> None:
        """Finishes a trial that the study holds, if it runs there and the record is finished."""
        if not record.finished:
            return
        storage = self._storage
        trial_id = storage.get_trial_id_from_study_id_trial_number(self._study_id, record.number)
        trial = storage.get_trial(trial_id)
        if trial.state.is_finished():
            return
        verdict = _Verdict.of(record)
        with self._file.together(finished_at=record.finished_at):
            for name, value in self._attributes(record).items():
                if trial.user_attrs.get(name) != value:
                    storage.set_trial_user_attr(trial_id, name, value)
            if verdict.constraints:
                storage.set_trial_system_attr(trial_id, CONSTRAINTS, list(verdict.constraints))
            storage.set_trial_state_values(trial_id, verdict.state, verdict.values)

    def _agrees(self, records: Sequence[TrialRecord]) -> bool:
        """Tells whether the study's trials are the ledger's first ones, finished or not yet."""
        trials = self._study.get_trials(deepcopy=False)
        return len(trials) <= len(records) and all(map(self._agree, trials, records))

    def _agree(self, trial: FrozenTrial, record: TrialRecord) -> bool:
        """Tells whether the study's trial is the ledger's, with the same result or none yet."""
        if trial.params != record.params:
            return False
        if trial.user_attrs.get("recipe_id") != record.recipe.recipe_id:
            return False
        if trial.state is StudyState.RUNNING:
            return True
        verdict = _Verdict.of(record)
        told = None if verdict.values is None else list(verdict.values)
        constraints = trial.system_attrs.get(CONSTRAINTS, [])
        return (trial.state, trial.values, constraints) == (
            verdict.state,
            told,
            list(verdict.constraints),
        ) and trial.user_attrs == self._attributes(record)

    def _frozen(self, record: TrialRecord) -> FrozenTrial:
        """Makes the trial as it enters the study with its verdict."""
        verdict = _Verdict.of(record)
        trial = create_trial(
            state=verdict.state,
            values=verdict.values,
            params=dict(record.params),
            distributions={n: _distribution(text) for n, text in record.distributions.items()},
            system_attrs={CONSTRAINTS: list(verdict.constraints)} if verdict.constraints else {},
            user_attrs=self._attributes(record),
        )
        trial.datetime_start = datetime.fromtimestamp(record.suggested_at, UTC)
        if record.finished_at is not None:
            trial.datetime_complete = datetime.fromtimestamp(record.finished_at, UTC)
        return trial

    def _attributes(self, record: TrialRecord) -> dict[str, Any]:
        """The facts that Optuna Dashboard shows of a trial besides its values."""
        attributes = self._recipe_attributes(record.recipe)
        if record.continues is not None:
            attributes["continues"] = record.continues
        if record.confirms is not None:
            attributes["confirms"] = record.confirms
        if record.finished:
            attributes["state"] = record.state.value
            if record.reason is not None:
                attributes["reason"] = record.reason
            attributes["curve"] = [
                {
                    "train_flops": measurement.train_flops,
                    "val_error": measurement.val_error if isfinite(measurement.val_error) else None,
                }
                for measurement in record.measurements
            ]
        return attributes

    def _recipe_attributes(self, recipe: Recipe) -> dict[str, Any]:
        """Tells the part of it that is known when a trial begins."""
        return {"recipe_id": recipe.recipe_id, "method": recipe.method, "sweep": self._sweep_id}


@dataclass(frozen=True, kw_only=True)
class _Verdict:
    """A trial's result as the study is told it."""

    state: StudyState
    values: Point | None = None
    """(validation error, log10 training FLOPs), always finite: TPE cannot rank anything else."""
    constraints: Sequence[float] = ()
    """Violated where positive."""

    @classmethod
    def of(cls, record: TrialRecord) -> "_Verdict":
        """Takes the contribution of the trial's curve, or a penalty at the compute it aimed at."""
        penalty = (WORST_ERROR, log10(record.recipe.target_flops))
        match record.state:
            case TrialState.RUNNING | TrialState.PAUSED:
                return cls(state=StudyState.RUNNING)
            case TrialState.FAILED:
                return cls(state=StudyState.FAIL)
            case TrialState.INFEASIBLE:
                return cls(state=StudyState.COMPLETE, values=penalty, constraints=VIOLATED)
            case TrialState.DIVERGED:
                return cls(state=StudyState.COMPLETE, values=penalty)
            case TrialState.COMPLETE | TrialState.HALVED:
                values = contribution(record.measurements) or penalty
                return cls(state=StudyState.COMPLETE, values=values)


_distribution = lru_cache(maxsize=4096)(json_to_distribution)
"""Makes a distribution of its JSON; most trials have the same ones."""
