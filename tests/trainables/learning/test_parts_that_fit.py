"""Parts: whole where they fit, halved where memory runs out, and every row once and in order."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from trainables.learning.parts_that_fit import in_parts_that_fit


class Worker:
    """Gives the rows it was asked for, if they are not too many."""

    def __init__(self, *, at_most: int) -> None:
        self.at_most = at_most
        self.sizes: list[int] = []
        """Size of every part it was given."""

    def __call__(self, rows: slice) -> list[int]:
        size = rows.stop - rows.start
        self.sizes.append(size)
        if size > self.at_most:
            raise torch.OutOfMemoryError(f"{size} rows are too many.")
        return list(range(rows.start, rows.stop))


@given(images=st.integers(0, 300), part=st.integers(1, 128), at_most=st.integers(1, 128))
def test_every_row_comes_once_and_in_order(images: int, part: int, at_most: int) -> None:
    parts = list(in_parts_that_fit(Worker(at_most=at_most), images, part=part))
    assert [row for rows in parts for row in rows] == list(range(images))


def test_parts_that_fit_are_left_whole() -> None:
    worker = Worker(at_most=8)
    list(in_parts_that_fit(worker, 20, part=8))
    assert worker.sizes == [8, 8, 4]


def test_later_parts_are_as_small_as_the_one_that_fitted() -> None:
    worker = Worker(at_most=3)
    list(in_parts_that_fit(worker, 10, part=8))
    assert worker.sizes == [8, 4, 2, 2, 2, 2, 2]


@pytest.mark.parametrize(("smallest", "sizes"), [(1, [8, 4, 2, 1]), (2, [8, 4, 2]), (3, [8, 4])])
def test_what_does_not_fit_in_the_smallest_part_fails(smallest: int, sizes: list[int]) -> None:
    worker = Worker(at_most=0)
    with pytest.raises(torch.OutOfMemoryError, match=f"^{sizes[-1]} rows are too many"):
        list(in_parts_that_fit(worker, 8, part=8, smallest=smallest))
    assert worker.sizes == sizes
