"""Plans by the names that recipes use."""

from typing import Any

from trainables.pruning import PruningPlan


def plan_of(*, ratio: float = 0.5, **choices: Any) -> PruningPlan:
    """A plan that takes half of the filters unless said otherwise; criteria and rules are words."""
    return PruningPlan(ratio=ratio, **choices)
