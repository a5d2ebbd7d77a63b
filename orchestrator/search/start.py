"""The start of a sweep: recipes that are tried before any is drawn."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import floor
from typing import Any

from orchestrator.search.config import Budget
from orchestrator.search.sampler import StudySampler
from orchestrator.search.strategy import Suggestion
from orchestrator.store.ledger import TrialRecord

SHARE = 0.1
"""Share of the budget that recipes of earlier tasks may take at most."""


@dataclass(frozen=True, kw_only=True)
class StartRecipe:
    """A recipe to try at the start of a sweep; what its values leave open is drawn."""

    values: Mapping[str, Any]
    """Values by the names of the space's parameters, without the compute aimed at."""
    origin: str
    """The place that it comes from, for people."""

    def to_dict(self) -> dict[str, Any]:
        """Returns JSON types."""
        return {"values": dict(self.values), "origin": self.origin}


class StartSampler:
    """Suggests the start's recipes first and in order, then what another sampler draws.

    They begin where new recipes do, never further up: while a race asks for a recipe that begins at
    a higher rung, one is drawn. Which of them were suggested is read from the ledger's records, so
    that a restart changes nothing.
    """

    def __init__(
        self,
        sampler: StudySampler,
        recipes: Sequence[StartRecipe],
        *,
        most_flops: float | None = None,
    ) -> None:
        """`most_flops` is the most that one of them may aim at where the aim is left open."""
        self._sampler = sampler
        self._recipes = recipes
        self._most_flops = most_flops
        self._tried: set[int] = set()
        self._entry_flops: float | None = None
        """Training FLOPs that the sweep's first recipe aims at; None before there is one."""

    def reconcile(self, records: Iterable[TrialRecord]) -> None:
        """Makes the sampler know exactly what the ledger knows; called at every start."""
        known = sorted(records, key=lambda record: record.number)
        self._sampler.reconcile(known)
        self._tried = {record.start for record in known if record.start is not None}
        self._entry_flops = known[0].recipe.target_flops if known else None

    def ask(
        self,
        number: int,
        *,
        max_target_flops: float | None = None,
        target_flops: float | None = None,
    ) -> Suggestion | None:
        """Suggests the next recipe of the start if one is due, else what the other sampler draws.

        Returns and raises what `StudySampler.ask` does.
        """
        suggestion = self._of_the_start(number, max_target_flops, target_flops)
        if suggestion is None:
            suggestion = self._sampler.ask(
                number, max_target_flops=max_target_flops, target_flops=target_flops
            )
        if suggestion is not None and self._entry_flops is None:
            self._entry_flops = suggestion.recipe.target_flops
        return suggestion

    def tell(self, record: TrialRecord) -> None:
        """Learns what the ledger knows of one trial; doing it twice is once."""
        self._sampler.tell(record)

    def _of_the_start(
        self, number: int, max_target_flops: float | None, target_flops: float | None
    ) -> Suggestion | None:
        """The start's next recipe; None where none is left, or fits what is asked for."""
        due = next((i for i in range(len(self._recipes)) if i not in self._tried), None)
        if due is None or (target_flops is not None and self._begins_above(target_flops)):
            return None
        limits = [max_target_flops, self._most_flops if target_flops is None else None]
        suggestion = self._sampler.ask(
            number,
            max_target_flops=min((flops for flops in limits if flops is not None), default=None),
            target_flops=target_flops,
            given=self._recipes[due].values,
        )
        if suggestion is None:
            return None
        self._tried.add(due)
        return replace(suggestion, start=due)

    def _begins_above(self, target_flops: float) -> bool:
        return self._entry_flops is not None and target_flops > self._entry_flops


def affordable(budget: Budget, *, most: int, entry_flops: float) -> int:
    """Returns how many recipes of earlier tasks fit into their share of the budget, up to `most`.

    It is one at least. `entry_flops` are the training FLOPs that a new recipe begins with.
    """
    limits: list[float] = [most]
    if budget.trials is not None:
        limits.append(SHARE * budget.trials)
    if budget.sweep_flops is not None:
        limits.append(SHARE * budget.sweep_flops / entry_flops)
    return max(1, floor(min(limits)))


def most_flops(budget: Budget, recipes: int, *, entry_flops: float) -> float | None:
    """Returns what each of the start's recipes may aim at so that all keep to the share.

    None where FLOPs are not limited.
    """
    if budget.sweep_flops is None or recipes == 0:
        return None
    return max(entry_flops, SHARE * budget.sweep_flops / recipes)
