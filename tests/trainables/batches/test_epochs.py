"""The order of the images."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from trainables.batches.epochs import Epochs


@given(images=st.integers(1, 30), size=st.integers(1, 70), steps=st.integers(1, 12))
def test_batches_are_permutations_laid_end_to_end(images: int, size: int, steps: int) -> None:
    order = Epochs(images=images, seed=3)
    batches = [order.batch(step, size=size) for step in range(steps)]
    assert all(len(batch) == size for batch in batches)
    stream = torch.cat(batches)
    for epoch in stream.split(images):
        seen = epoch.tolist()
        assert len(set(seen)) == len(seen)
        assert set(seen) <= set(range(images))


def test_a_shorter_epoch_is_the_beginning_of_the_whole_one() -> None:
    whole, short = Epochs(images=10, seed=3), Epochs(images=10, seed=3, length=8)
    for epoch in range(3):
        batches = [short.batch(2 * epoch + half, size=4) for half in range(2)]
        assert torch.equal(torch.cat(batches), whole.batch(epoch, size=10)[:8])


@given(step=st.integers(0, 50), detour=st.lists(st.integers(0, 50), max_size=4))
def test_a_batch_does_not_depend_on_what_was_asked_before(step: int, detour: list[int]) -> None:
    well_travelled = Epochs(images=10, seed=1)
    for other in detour:
        well_travelled.batch(other, size=4)
    expected = Epochs(images=10, seed=1).batch(step, size=4)
    assert torch.equal(well_travelled.batch(step, size=4), expected)


def test_epochs_and_seeds_differ() -> None:
    order = Epochs(images=50, seed=1)
    first, second = order.batch(0, size=50), order.batch(1, size=50)
    assert not torch.equal(first, second)
    assert not torch.equal(first, Epochs(images=50, seed=2).batch(0, size=50))
    assert not torch.equal(first, torch.arange(50))
