"""Results that are remembered: found once for a key, evicted when others were used since."""

from collections.abc import Callable

import pytest

from trainables.remembered import Remembered


def test_a_result_is_found_once_and_the_least_recently_used_is_evicted() -> None:
    found: list[str] = []

    def finding(key: str) -> Callable[[], str]:
        def find() -> str:
            found.append(key)
            return key.upper()

        return find

    remembered = Remembered[str](size=2)
    for key in ("a", "a", "b", "a", "c", "a"):
        assert remembered.get(key, finding(key)) == key.upper()
    assert found == ["a", "b", "c"]
    remembered.get("b", finding("b"))
    assert found == ["a", "b", "c", "b"]


def test_what_could_not_be_found_is_looked_for_again() -> None:
    remembered = Remembered[int](size=1)

    def fail() -> int:
        raise ValueError("nothing there")

    with pytest.raises(ValueError, match="nothing there"):
        remembered.get("key", fail)
    assert remembered.get("key", lambda: 7) == 7
