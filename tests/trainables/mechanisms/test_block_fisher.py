"""The inverse of the blocks is the dense inverse, and the update the minimum of the quadratic."""

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from trainables.errors import InfeasibleError
from trainables.mechanisms.block_fisher import BlockFisher

DAMPENING = 1e-3
SAMPLES = 40


def gradients(shape: tuple[int, ...] = (6, 5, 2)) -> Tensor:
    draws = torch.Generator().manual_seed(0)
    return torch.randn(SAMPLES, *shape, generator=draws) * torch.rand(shape, generator=draws)


def fisher_of(found: Tensor, *, block_size: int, dampening: float = DAMPENING) -> BlockFisher:
    made = BlockFisher(found[0], block_size=block_size, dampening=dampening, samples=len(found))
    for gradient in found:
        made.add(gradient)
    return made


def dense(found: Tensor, dampening: float = DAMPENING) -> Tensor:
    """The Fisher of the whole weight, float64."""
    flat = found.flatten(1).double()
    return dampening * torch.eye(flat.shape[1]).double() + flat.mT @ flat / len(flat)


def weight_of(found: Tensor) -> Tensor:
    return torch.randn(found.shape[1:], generator=torch.Generator().manual_seed(2))


def assert_close(found: Tensor, expected: Tensor) -> None:
    assert (found - expected).abs().max() <= 1e-4 * expected.abs().max()


def test_one_block_is_the_dense_inverse() -> None:
    found = gradients()
    for block_size in (60, 1000):
        (inverse,) = fisher_of(found, block_size=block_size).inverse
        assert_close(inverse, torch.linalg.inv(dense(found)))


def test_each_block_is_the_dense_inverse_of_its_block() -> None:
    found = gradients()
    fisher = dense(found)
    inverse = fisher_of(found, block_size=16).inverse
    assert inverse.shape == (4, 16, 16)
    for block, first in enumerate(range(0, 60, 16)):
        part = fisher[first : first + 16, first : first + 16]
        assert_close(inverse[block, : len(part), : len(part)], torch.linalg.inv(part))


def test_a_hard_layer_with_weak_dampening_is_inverted_too() -> None:
    found = 0.1 * gradients()
    (inverse,) = fisher_of(found, block_size=60, dampening=1e-5).inverse
    assert_close(inverse, torch.linalg.inv(dense(found, 1e-5)))


def test_the_increase_is_what_removing_a_value_alone_costs() -> None:
    found = gradients()
    weight = weight_of(found)
    fisher = dense(found)
    one = fisher_of(found, block_size=60)
    increases = one.loss_increases(weight).flatten()
    for position in (0, 31, 59):
        mask = torch.ones(60, dtype=torch.bool)
        mask[position] = False
        change = (one.without(weight, mask.view(weight.shape)) - weight).flatten().double()
        assert change[position] == -weight.flatten()[position]
        torch.testing.assert_close(
            increases[position].double(), change @ fisher @ change / 2, rtol=1e-3, atol=0.0
        )


@pytest.mark.parametrize("block_size", [1, 16, 60])
def test_the_update_is_the_minimum_of_the_quadratic(block_size: int) -> None:
    found = gradients()
    weight = weight_of(found)
    draws = torch.Generator().manual_seed(3)
    mask = torch.rand(weight.shape, generator=draws) > 0.6
    result = fisher_of(found, block_size=block_size).without(weight, mask)
    assert not result[~mask].any()
    fisher = dense(found)
    for first in range(0, 60, block_size):
        rows = slice(first, min(first + block_size, 60))
        kept, w = mask.flatten()[rows], weight.flatten()[rows].double()
        part = fisher[rows, rows]
        moved = torch.linalg.solve(part[kept][:, kept], part[kept][:, ~kept] @ w[~kept])
        torch.testing.assert_close(
            result.flatten()[rows][kept].double(), w[kept] + moved, rtol=1e-3, atol=1e-4
        )


def test_nothing_removed_is_nothing_moved() -> None:
    found = gradients()
    weight = weight_of(found)
    kept = fisher_of(found, block_size=16).without(weight, torch.ones_like(weight).bool())
    assert torch.equal(kept, weight)


def test_every_product_is_counted() -> None:
    found = gradients()
    one = BlockFisher(found[0], block_size=16, dampening=DAMPENING, samples=SAMPLES)
    with FlopCounterMode(display=False) as counter:
        one.add(found[0])
    outer = 4 * 2 * 16**2  # done in place, which the counter does not know
    assert one.flops == counter.get_total_flops() + outer == 4 * (4 * 16**2 + 2 * 16)
    one.without(found[0], found[0] > 0)
    assert one.flops == pytest.approx(4 * (4 * 16**2 + 2 * 16 + 2 / 3 * 16**3 + 4 * 16**2))


def test_a_diagonal_that_is_lost_is_told() -> None:
    found = gradients()
    found[0, 0, 0, 0] = torch.inf
    with pytest.raises(InfeasibleError, match="raise it"):
        fisher_of(found, block_size=16).loss_increases(weight_of(found))
