"""Trials that a sampler was asked for, on a task made of numbers: what its tests share."""

from dataclasses import replace
from math import log10

from orchestrator.search.strategy import Sampler, Suggestion
from orchestrator.store.ledger import TrialRecord, TrialState
from search_spaces.problem import Problem
from search_spaces.ranges import Ranges
from search_spaces.recipe import Recipe
from trainables.measurement import Measurement

RUNGS = (1e9, 2e9, 4e9, 8e9, 16e9, 32e9)
PROBLEM = Problem(rungs=RUNGS, native_resolution=32, train_images=50_000, classes=10)

FEW: Ranges = {
    "scope": "layer",
    "weight_decay": 1e-4,
    "batch_size": 32,
    "label_smoothing": 0.0,
    "layer_decay": 1.0,
    "trainable_depth": 1.0,
    "resolution": 32,
    "augmentation": 0.0,
}
"""Leaves few parameters to search, which is faster."""


def running(suggestion: Suggestion | None) -> TrialRecord:
    """The ledger's record of a trial that has just been suggested."""
    assert suggestion is not None
    return TrialRecord(
        trial_id=f"{suggestion.number}-{suggestion.recipe.recipe_id}",
        number=suggestion.number,
        recipe=suggestion.recipe,
        seed=0,
        suggested_at=0.0,
        params=suggestion.params,
        distributions=suggestion.distributions,
    )


def complete(record: TrialRecord, val_error: float) -> TrialRecord:
    """The record once the trial has spent the compute it aimed at."""
    end = Measurement(
        rung=RUNGS.index(record.recipe.target_flops),
        train_flops=record.recipe.target_flops,
        executed_flops=record.recipe.target_flops,
        eval_flops=0.0,
        inference_flops=1e6,
        params=1000,
        updated_params=1000,
        val_error=val_error,
        val_loss=1.0,
        train_seconds=1.0,
        images_seen=1000,
    )
    return replace(record, state=TrialState.COMPLETE, measurements=(end,))


def error_of(recipe: Recipe) -> float:
    """A task that likes a ratio of 0.5, a rate of 0.01, L2, and compute."""
    ratio, rate = float(recipe.settings["pruning_ratio"]), log10(recipe.learning_rate)
    criterion = recipe.settings.get("criterion")
    miss = (ratio - 0.5) ** 2 + 0.1 * (rate + 2) ** 2 + 0.1 * (criterion != "l2")
    return min(1.0, 0.1 + miss + 0.3 * (1 - RUNGS.index(recipe.target_flops) / len(RUNGS)))


def run(sampler: Sampler, records: list[TrialRecord], number: int) -> list[TrialRecord]:
    """`number` further trials, one after another."""
    for _ in range(number):
        record = running(sampler.ask(len(records)))
        records.append(complete(record, error_of(record.recipe)))
        sampler.tell(records[-1])
    return records


def ids(records: list[TrialRecord]) -> list[str]:
    return [record.recipe.recipe_id for record in records]


def ratio_missed(records: list[TrialRecord]) -> float:
    """How far the ratios lie from the optimum of `error_of`, on average."""
    ratios = [float(record.recipe.settings["pruning_ratio"]) for record in records]
    return sum(abs(ratio - 0.5) for ratio in ratios) / len(ratios)
