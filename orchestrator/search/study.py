"""The Optuna study of a sweep: a view of the ledger that can always be built anew."""

import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite, log10
from pathlib import Path

import optuna
from optuna.distributions import json_to_distribution
from optuna.samplers import RandomSampler
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, create_trial
from optuna.trial import TrialState as StudyState

from orchestrator.store.ledger import TrialRecord, TrialState
from search_spaces.draws import Draw

_log = logging.getLogger(__name__)

_WORST_ERROR = 1.0
"""The validation error told for a trial that has none."""
_INFEASIBLE = "infeasible"
"""Name of the constraint that a recipe which cannot be realised violates."""


class SweepStudy:
    """A study, in one journal file a sweep, whose trial n is the ledger's trial n.

    Objectives: (validation error, log10 training FLOPs), both to be minimised. A trial enters in
    one line, whole, when its recipe is known, so that no half-made trial is ever left running.
    """

    def __init__(self, path: Path, sweep_id: str) -> None:
        """Opens the study, new where there is none or where its file is damaged."""
        optuna.logging.set_verbosity(optuna.logging.WARNING)  # it reports every trial
        self._path = path
        self._sweep_id = sweep_id
        path.parent.mkdir(parents=True, exist_ok=True)
        # A killed driver may have left the lock; a sweep has one driver, so nobody else holds it.
        path.with_name(f"{path.name}.lock").unlink(missing_ok=True)
        storage = _intact(path)
        if storage is None:
            _log.warning("The Optuna study %s is damaged and starts empty.", path)
            path.unlink()
        self._open(storage or _journal(path))

    def __len__(self) -> int:
        """Trials it holds, which is the number of the next one."""
        return self._storage.get_n_trials(self._study_id)

    def handle(self) -> optuna.Study:
        """A handle to read it by; always a new one, because Optuna's caches what it has read."""
        return optuna.load_study(
            study_name=self._sweep_id, storage=self._storage, sampler=RandomSampler()
        )

    def begin(self, drawn: Draw) -> None:
        """Adds the next trial, running."""
        self._study.add_trial(
            create_trial(
                state=StudyState.RUNNING,
                params=dict(drawn.params),
                distributions=dict(drawn.distributions),
                user_attrs={"recipe_id": drawn.recipe.recipe_id},
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
        verdict = _Verdict.of(record)
        if record.number == len(self):
            self._study.add_trial(_frozen(record, verdict))
            return
        trial_id = self._storage.get_trial_id_from_study_id_trial_number(
            self._study_id, record.number
        )
        if not record.finished or self._storage.get_trial(trial_id).state.is_finished():
            return
        trial = optuna.Trial(self._study, trial_id)
        for name, value in verdict.constraints.items():
            if name not in trial.constraints:  # set already when the driver died in between
                trial.set_constraint(name, value)
        self._study.tell(trial, values=verdict.values, state=verdict.state)

    def reconcile(self, records: Iterable[TrialRecord]) -> None:
        """Makes the study agree with the ledger, whose trials are numbered 0, 1, 2, ...

        A study that lags behind is brought up to date. One that holds anything the ledger does
        not (a trial begun but never written down, another recipe, another result) is built anew.
        """
        ordered = sorted(records, key=lambda record: record.number)
        if not self._agrees(ordered):
            _log.warning("The Optuna study %s disagrees with the ledger: built anew.", self._path)
            self._path.unlink(missing_ok=True)
            self._open(_journal(self._path))
        for record in ordered:
            self.tell(record)

    def _open(self, storage: JournalStorage) -> None:
        if self._sweep_id not in optuna.get_all_study_names(storage):
            optuna.create_study(
                study_name=self._sweep_id, storage=storage, directions=["minimize", "minimize"]
            )
        self._storage = storage
        self._study = self.handle()
        self._study_id = storage.get_study_id_from_name(self._sweep_id)

    def _agrees(self, records: Sequence[TrialRecord]) -> bool:
        """Whether the study's trials are the ledger's first ones, finished or not yet."""
        trials = self._study.get_trials(deepcopy=False)
        return len(trials) <= len(records) and all(
            _agree(trial, record) for trial, record in zip(trials, records, strict=False)
        )


@dataclass(frozen=True, kw_only=True)
class _Verdict:
    """A trial's result as the study is told it."""

    state: StudyState
    values: tuple[float, float] | None = None
    """(validation error, log10 training FLOPs), always finite: TPE cannot rank anything else."""
    constraints: Mapping[str, float]
    """Violated where positive."""

    @classmethod
    def of(cls, record: TrialRecord) -> "_Verdict":
        """The end of the trial's curve, or a penalty at the compute it aimed at."""
        penalty = (_WORST_ERROR, log10(record.recipe.target_flops))
        match record.state:
            case TrialState.RUNNING | TrialState.PAUSED:
                return cls(state=StudyState.RUNNING, constraints={})
            case TrialState.FAILED:
                return cls(state=StudyState.FAIL, constraints={})
            case TrialState.INFEASIBLE:
                violated = {_INFEASIBLE: 1.0}
                return cls(state=StudyState.COMPLETE, values=penalty, constraints=violated)
            case TrialState.DIVERGED:
                return cls(state=StudyState.COMPLETE, values=penalty, constraints={})
            case TrialState.COMPLETE | TrialState.HALVED:
                values = _last_point(record) or penalty
                return cls(state=StudyState.COMPLETE, values=values, constraints={})


def _last_point(record: TrialRecord) -> tuple[float, float] | None:
    """The end of the trial's curve; `None` where it has none or its error is not finite."""
    if not record.measurements:
        return None
    last = record.measurements[-1]
    if not isfinite(last.val_error) or last.train_flops <= 0:
        return None
    return last.val_error, log10(last.train_flops)


def _frozen(record: TrialRecord, verdict: _Verdict) -> FrozenTrial:
    """The trial as it enters the study with its verdict."""
    return create_trial(
        state=verdict.state,
        values=verdict.values,
        params=dict(record.params),
        distributions={
            name: json_to_distribution(text) for name, text in record.distributions.items()
        },
        constraints=dict(verdict.constraints),
        user_attrs={"recipe_id": record.recipe.recipe_id},
    )


def _agree(trial: FrozenTrial, record: TrialRecord) -> bool:
    """Whether the study's trial is the ledger's, with the same result or none yet."""
    if trial.params != record.params:
        return False
    if trial.user_attrs.get("recipe_id") != record.recipe.recipe_id:
        return False
    if trial.state is StudyState.RUNNING:
        return True
    verdict = _Verdict.of(record)
    told = None if verdict.values is None else list(verdict.values)
    return (trial.state, trial.values, trial.constraints) == (
        verdict.state,
        told,
        verdict.constraints,
    )


def _journal(path: Path) -> JournalStorage:
    """The journal at `path` as Optuna replays it; new where there is none."""
    return JournalStorage(JournalFileBackend(str(path)))


def _intact(path: Path) -> JournalStorage | None:
    """The journal at `path`, or `None` where it is damaged.

    A driver killed while it writes leaves half a last line. Optuna reads past it, glues the next
    line to it, and then reads nothing any more: so every line must be whole and JSON.
    """
    try:
        if path.exists():
            with path.open("rb") as lines:
                for line in lines:
                    if not line.endswith(b"\n"):
                        return None
                    json.loads(line)
        return _journal(path)
    except OSError:
        raise
    except Exception:  # whatever Optuna's replay makes of lines it never wrote
        return None
