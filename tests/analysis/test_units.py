"""Numbers as people read them, at the seams between units."""

import math

import pytest

from analysis import units


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (1.2e13, "12 TFLOPs"),
        (3.24e12, "3.24 TFLOPs"),
        (999.9e9, "1 TFLOPs"),
        (999.4e9, "999 GFLOPs"),
        (1000, "1 kFLOPs"),
        (12, "12 FLOPs"),
        (0, "0 FLOPs"),
        (3e28, "3e+04 YFLOPs"),
        (math.inf, "inf FLOPs"),
        (None, "unknown"),
    ],
)
def test_flops(value: float | None, text: str) -> None:
    assert units.flops(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(11_689_512, "11.7 M"), (640, "640"), (0, "0"), (999_999, "1 M"), (None, "unknown")],
)
def test_count(value: float | None, text: str) -> None:
    assert units.count(value) == text


@pytest.mark.parametrize(
    ("share", "text"), [(0.0834, "8.3 %"), (1, "100.0 %"), (0.0, "0.0 %"), (None, "unknown")]
)
def test_percent(share: float | None, text: str) -> None:
    assert units.percent(share) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0.0 s"),
        (4.21, "4.2 s"),
        (9.97, "10 s"),
        (59.96, "1 min"),
        (185, "3 min 5 s"),
        (3599.8, "1 h"),
        (7384, "2 h 3 min"),
        (86_399, "1 d"),
        (100_000, "1 d 4 h"),
        (None, "unknown"),
    ],
)
def test_duration(seconds: float | None, text: str) -> None:
    assert units.duration(seconds) == text
