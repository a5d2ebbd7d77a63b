"""A method's settings are refused in one sentence."""

from typing import Any, Literal

import pytest
from pydantic import Field

from trainables.errors import InputError
from trainables.settings import Settings


class Own(Settings):
    sparsity: float = Field(ge=0, lt=1)
    scope: Literal["layer", "global"]
    updates: int = Field(default=3, ge=1)
    repair: bool = False


GOOD: dict[str, Any] = {"sparsity": 0.5, "scope": "layer"}


def test_good_settings_are_read() -> None:
    assert Own.read(GOOD) == Own(sparsity=0.5, scope="layer", updates=3, repair=False)
    assert Own.read({**GOOD, "sparsity": 0}).sparsity == 0


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"sparsity": 1.0}, "sparsity=1.0 must be less than 1."),
        ({"sparsity": -0.5}, "sparsity=-0.5 must be greater than or equal to 0."),
        ({"sparsity": float("nan")}, "sparsity=nan must be a finite number."),
        ({"sparsity": "0.5"}, "sparsity='0.5' must be a valid number."),
        ({"scope": "network"}, "scope='network' must be 'layer' or 'global'."),
        ({"updates": 1.5}, "updates=1.5 must be a valid integer."),
        ({"updates": True}, "updates=True must be a valid integer."),
        ({"repair": 1}, "repair=1 must be a valid boolean."),
        ({"rank": 4}, "rank is no setting of the method, which has sparsity, scope, updates, re"),
    ],
)
def test_bad_settings_are_refused(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(InputError) as refusal:
        Own.read(GOOD | changes)
    assert str(refusal.value).startswith(sentence)


def test_missing_settings_are_named() -> None:
    with pytest.raises(InputError, match="scope is missing; the method's settings are sparsity, s"):
        Own.read({"sparsity": 0.5})
