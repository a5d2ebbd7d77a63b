"""Structured pruning of filters, before finetuning."""

from trainables.pruning.plan import Criterion, PruningPlan, Scope, WidthRule
from trainables.pruning.pruner import prune, rebuild
from trainables.pruning.structure import PrunedStructure

__all__ = [
    "Criterion",
    "PrunedStructure",
    "PruningPlan",
    "Scope",
    "WidthRule",
    "prune",
    "rebuild",
]
