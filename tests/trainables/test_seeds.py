"""Seeds: the same on every machine, different for every purpose."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from trainables.seeds import derive_seed, generator

Parts = st.lists(st.one_of(st.integers(), st.text(max_size=5)), max_size=4)


def test_seeds_stay_what_they_are() -> None:
    # Stored sweeps resume by them: if these change, resumed trials are no longer themselves.
    assert derive_seed(0, "trial", 3) == 8704578367980270918
    assert derive_seed(derive_seed(0, "trial", 3), "step", 17) == 510632870613159018


def test_a_generator_starts_at_its_seed() -> None:
    draws = torch.rand(3, generator=generator(5, "order", 2))
    torch.manual_seed(derive_seed(5, "order", 2))
    assert torch.equal(torch.rand(3), draws)


@given(Parts)
def test_a_seed_fits_every_generator(parts: list[int | str]) -> None:
    assert 0 <= derive_seed(*parts) < 2**63


@given(Parts, Parts)
def test_other_parts_make_another_seed(one: list[int | str], other: list[int | str]) -> None:
    assert (derive_seed(*one) == derive_seed(*other)) == (one == other)


@pytest.mark.parametrize("other", [("a/b",), ("b", "a"), ("a", "b", ""), ("ab",)])
def test_parts_are_not_run_together(other: tuple[str, ...]) -> None:
    assert derive_seed(*other) != derive_seed("a", "b")
