"""Plans: what they take, what they refuse."""

from typing import Any

import pytest

from tests.trainables.pruning.plans import plan_of
from trainables.errors import InputError
from trainables.pruning import Criterion, FilterScope, PruningPlan, WidthRule


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"ratio": 1.0}, r"ratio=1.0 must lie in \[0, 1\); 0 means dense"),
        ({"ratio": -0.1}, r"must lie in \[0, 1\)"),
        ({"ratio": float("nan")}, r"must lie in \[0, 1\)"),
        ({"ratio": 0.5, "round_to": 0}, r"round_to=0 must be at least 1"),
        (
            {"ratio": 0.5, "criterion": "l3"},
            r"criterion='l3' must be one of 'l1', 'l2', 'batch_norm_scale'",
        ),
        ({"ratio": 0.5, "width_rule": "most"}, r"must be one of 'inner', 'all'"),
        ({"ratio": 0.5, "scope": "net"}, r"must be one of 'layer', 'global'"),
    ],
)
def test_a_wrong_plan_is_refused_in_a_sentence(wrong: dict[str, Any], sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        PruningPlan(**wrong)


def test_a_plan_takes_the_names_that_recipes_use() -> None:
    plan = plan_of(criterion="l2", width_rule="all", scope="global")
    assert plan == PruningPlan(
        ratio=0.5, criterion=Criterion.L2, width_rule=WidthRule.ALL, scope=FilterScope.GLOBAL
    )
    assert isinstance(plan.criterion, Criterion)
