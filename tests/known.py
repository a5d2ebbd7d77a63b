"""Narrows what a record or a library may lack to what a test knows to be there."""

from typing import TypeVar

T = TypeVar("T")


def known(value: T | None) -> T:
    """Returns the value; fails where there is none."""
    assert value is not None
    return value
