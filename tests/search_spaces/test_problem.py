"""The problem refuses what no search space can be built from."""

from typing import Any

import pytest

from search_spaces.problem import Problem

GOOD: dict[str, Any] = {
    "rungs": (1e9, 2e9, 4e9),
    "native_resolution": 32,
    "train_images": 1000,
    "classes": 10,
}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("rungs", ()),
        ("rungs", (0.0, 1.0)),
        ("rungs", (2e9, 1e9)),
        ("rungs", (1e9, 1e9)),
        ("native_resolution", 7),
        ("train_images", 0),
        ("classes", 1),
        ("class_imbalance", 0.5),
    ],
)
def test_a_bad_value_is_refused_by_name(name: str, value: object) -> None:
    with pytest.raises(ValueError, match=f"^{name}=.* must be .*\\.$"):
        Problem(**(GOOD | {name: value}))


def test_rungs_become_a_tuple() -> None:
    assert Problem(**(GOOD | {"rungs": [1e9, 2e9]})).rungs == (1e9, 2e9)


@pytest.mark.parametrize(
    ("limit", "left"), [(4e9, 3), (1e30, 3), (3.9e9, 2), (1e9, 1), (0.99e9, None), (0.0, None)]
)
def test_capped_keeps_the_rungs_up_to_the_limit(limit: float, left: int | None) -> None:
    capped = Problem(**GOOD).capped(limit)
    if left is None:
        assert capped is None
    else:
        assert capped == Problem(**(GOOD | {"rungs": GOOD["rungs"][:left]}))
