"""Trials made of numbers: what the tests of the driver's side feed it."""

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from pyarrow import fs

from orchestrator.store.journal import Event, Journal
from orchestrator.store.ledger import Ledger, TrialRecord, TrialState
from search_spaces.recipe import Recipe, Setting
from trainables.measurement import Measurement, Outcome, Report

LEVELS = (1e9, 2e9, 4e9, 8e9)


def recipe(number: int = 0, *, target_flops: float = LEVELS[-1], **settings: Setting) -> Recipe:
    """A recipe that `number` makes its own."""
    return Recipe(
        method="filter_pruning",
        settings={"pruning_ratio": 0.5, "criterion": "l1", **settings},
        learning_rate=0.01 / (1 + number),
        weight_decay=1e-4,
        batch_size=32,
        label_smoothing=0.1,
        layer_decay=1.0,
        trainable_depth=1.0,
        resolution=32,
        augmentation=0.0,
        target_flops=target_flops,
    )


def record(number: int = 0, **values: Any) -> TrialRecord:
    """A trial as it is when it is suggested."""
    suggested: dict[str, Any] = {
        "trial_id": f"t{number}",
        "number": number,
        "recipe": recipe(number),
        "seed": number,
        "suggested_at": 0.0,
    }
    return TrialRecord(**suggested | values)


def measurement(
    rung: int, val_error: float = 0.5, *, train_flops: float | None = None, **values: Any
) -> Measurement:
    """A measurement at the level of `rung`; it cost what lies between this level and the last."""
    spent = LEVELS[rung] if train_flops is None else train_flops
    before = LEVELS[rung - 1] if rung else 0.0
    return Measurement(
        **{
            "rung": rung,
            "train_flops": spent,
            "executed_flops": spent - before if train_flops is None else spent,
            "eval_flops": 1e6,
            "inference_flops": 1e6,
            "params": 1000,
            "updated_params": 1000,
            "val_error": val_error,
            "val_loss": 1.0,
            "train_seconds": 1.0,
            "images_seen": 1000,
        }
        | values
    )


def reported(rung: int, val_error: float = 0.5, *, over: bool = False, **values: Any) -> Report:
    """The report of a trial that measured `measurement(rung, val_error)`."""
    outcome = Outcome.COMPLETE if over else Outcome.RUNNING
    return Report(outcome=outcome, measurement=measurement(rung, val_error, **values))


class Clock:
    """Shows the time it was set to."""

    def __init__(self) -> None:
        self.now = 1e9

    def __call__(self) -> float:
        return self.now


class MemoryJournal(Journal):
    """A journal that lasts as long as the test."""

    def __init__(self) -> None:
        self.kept: list[Event] = []

    def events(self) -> Iterator[Event]:
        return iter(list(self.kept))

    def append(self, event: Mapping[str, Any]) -> None:
        self.kept.append(json.loads(json.dumps(event)))

    def close(self) -> None:
        """Nothing is open."""


def ledger_of(
    curves: Mapping[int, Iterable[float]],
    *,
    finished: Iterable[int] = (),
    journal: Journal | None = None,
) -> Ledger:
    """A ledger of trials by number with the errors they measured, rung after rung."""
    ledger = Ledger(journal or MemoryJournal(), clock=Clock())
    ledger.open(sweep_id="sweep")
    for number, errors in curves.items():
        ledger.suggested(record(number))
        for rung, error in enumerate(errors):
            ledger.measured(f"t{number}", reported(rung, error))
    for number in finished:
        ledger.finished(f"t{number}", TrialState.COMPLETE)
    return ledger


def disk(folder: Path) -> fs.FileSystem:
    """A filesystem rooted at `folder`."""
    return fs.SubTreeFileSystem(str(folder), fs.LocalFileSystem())
