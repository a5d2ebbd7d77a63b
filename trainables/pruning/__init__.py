"""Structured pruning of filters, before finetuning."""

from trainables.pruning.plan import Criterion, FilterScope, PruningPlan, WidthRule
from trainables.pruning.pruner import prune, rebuild
from trainables.pruning.structure import PrunedStructure

__all__ = [
    "Criterion",
    "FilterScope",
    "PrunedStructure",
    "PruningPlan",
    "WidthRule",
    "prune",
    "rebuild",
]
