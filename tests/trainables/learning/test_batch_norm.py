"""Batch-norm re-estimation."""

import copy
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from trainables.learning.batch_norm import reestimate_batch_norm


def net() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, stride=2),
        nn.BatchNorm2d(4, momentum=0.3),
        nn.Dropout(0.5),
        nn.BatchNorm2d(4),
    )


def batches(*sizes: int) -> list[Tensor]:
    torch.manual_seed(0)
    return [torch.randn(size, 3, 9, 9) * 3 + 1 for size in sizes]


def test_statistics_become_the_plain_average_over_batches() -> None:
    model = net()
    model.get_buffer("1.running_mean").fill_(100)
    images = batches(4, 4, 4)
    assert reestimate_batch_norm(model, images) == 12
    maps = [model[0](batch) for batch in images]
    mean = torch.stack([m.mean((0, 2, 3)) for m in maps]).mean(0)
    variance = torch.stack([m.transpose(0, 1).flatten(1).var(1) for m in maps]).mean(0)
    assert torch.allclose(model.get_buffer("1.running_mean"), mean, atol=1e-5)
    assert torch.allclose(model.get_buffer("1.running_var"), variance, atol=1e-5)
    # without dropout the second norm sees values that the first has normalised
    assert torch.allclose(model.get_buffer("3.running_var"), torch.ones(4), atol=0.02)


def test_modes_momenta_weights_and_gradients_stay() -> None:
    model = net().train()
    model[1].eval()
    model[0].requires_grad_(requires_grad=False)
    weights = {name: p.clone() for name, p in model.named_parameters()}
    reestimate_batch_norm(model, batches(4))
    assert [m.training for m in model] == [True, False, True, True]
    assert [m.momentum for m in model if isinstance(m, nn.BatchNorm2d)] == [0.3, 0.1]
    assert all(torch.equal(weights[name], p) for name, p in model.named_parameters())
    assert not model[0].weight.requires_grad
    assert all(p.grad is None for p in model.parameters())


def test_modes_and_momenta_come_back_after_an_error() -> None:
    def broken() -> Iterator[Tensor]:
        yield from batches(4)
        raise OSError("the disk is gone")

    model = net().train()
    with pytest.raises(OSError, match="disk"):
        reestimate_batch_norm(model, broken())
    assert all(m.training for m in model)
    assert model[1].momentum == 0.3


class Gluttonous(nn.Module):
    """Runs out of memory, behind the first norm, on more images than it can take."""

    def __init__(self, *, at_most: int) -> None:
        super().__init__()
        self.at_most = at_most

    def forward(self, maps: Tensor) -> Tensor:
        if len(maps) > self.at_most:
            raise torch.OutOfMemoryError(f"{len(maps)} images are too many.")
        return maps


def test_a_batch_that_does_not_fit_counts_as_its_halves() -> None:
    torch.manual_seed(1)
    rich = net()
    poor = copy.deepcopy(rich)
    poor[2] = Gluttonous(at_most=2)
    (images,) = batches(8)
    assert reestimate_batch_norm(rich, images.split(2)) == 8
    assert reestimate_batch_norm(poor, [images]) == 8
    for name, buffer in rich.named_buffers():
        assert torch.equal(buffer, poor.get_buffer(name)), name


def test_an_odd_image_of_a_halved_batch_is_left_out() -> None:
    poor = net()
    poor[2] = Gluttonous(at_most=3)
    assert reestimate_batch_norm(poor, batches(7)) == 6
    assert poor[1].num_batches_tracked == poor[3].num_batches_tracked == 2


def test_a_batch_of_which_no_two_images_fit_fails_and_is_forgotten() -> None:
    poor = net()
    poor[2] = Gluttonous(at_most=1)
    with pytest.raises(torch.OutOfMemoryError, match="2 images are too many"):
        reestimate_batch_norm(poor, batches(8))
    assert poor[1].num_batches_tracked == 0


def test_batches_of_one_image_are_left_out() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 9), nn.BatchNorm2d(4))  # maps of one pixel
    assert reestimate_batch_norm(model, batches(4, 1)) == 4
    assert model[1].num_batches_tracked == 1


def test_without_norms_or_batches_nothing_happens() -> None:
    def never() -> Iterator[Tensor]:
        raise AssertionError("a batch was drawn")
        yield

    assert (
        reestimate_batch_norm(nn.Sequential(nn.Conv2d(3, 4, 1), nn.GroupNorm(2, 4)), never()) == 0
    )
    model = net()
    before = copy.deepcopy(model.state_dict())
    assert reestimate_batch_norm(model, batches(1)) == 0
    assert reestimate_batch_norm(model, []) == 0
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
