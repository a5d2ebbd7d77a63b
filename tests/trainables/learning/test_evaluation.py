"""Error and loss of a model on a split."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from trainables.images.store import Split
from trainables.learning.evaluation import EVALUATION_BATCH, evaluate


class Fixed(nn.Module):
    """Gives the first three values of every image as logits."""

    def forward(self, images: Tensor) -> Tensor:
        return images.flatten(1)[:, :3]


def split_of(logits: list[list[int]], labels: list[int]) -> Split:
    images = torch.tensor(logits, dtype=torch.uint8)[:, :, None, None]
    return Split(images=images, labels=torch.tensor(labels))


def test_error_and_loss_by_hand() -> None:
    split = split_of([[2, 0, 0], [0, 2, 0], [0, 0, 2], [0, 0, 2]], [0, 1, 2, 0])
    error, loss = evaluate(Fixed(), split, Tensor.float)
    normaliser = np.log(np.exp(2) + 2)
    assert error == 1 / 4
    assert loss == pytest.approx((3 * (normaliser - 2) + normaliser) / 4)


def test_the_last_batch_counts_as_much_as_its_images() -> None:
    count = EVALUATION_BATCH + 3
    split = split_of([[1, 0, 0]] * count, [0] * EVALUATION_BATCH + [1] * 3)
    error, _ = evaluate(Fixed(), split, Tensor.float)
    assert error == 3 / count


class Gluttonous(nn.Module):
    """Runs out of memory on more images than it can take."""

    def __init__(self, *, at_most: int) -> None:
        super().__init__()
        self.at_most = at_most
        self.sizes: list[int] = []
        """Size of every batch it was given."""

    def forward(self, images: Tensor) -> Tensor:
        self.sizes.append(len(images))
        if len(images) > self.at_most:
            raise torch.OutOfMemoryError(f"{len(images)} images are too many.")
        logits: Tensor = Fixed()(images)
        return logits


def test_batches_that_do_not_fit_are_halved_until_they_do() -> None:
    count = EVALUATION_BATCH + 10
    split = split_of([[1, 0, 0]] * count, [0] * EVALUATION_BATCH + [1] * 10)
    whole = evaluate(Fixed(), split, Tensor.float)
    poor = Gluttonous(at_most=100)
    assert evaluate(poor, split, Tensor.float) == pytest.approx(whole)
    assert poor.sizes == [256, 128, 64, 64, 64, 64, 10]
    with pytest.raises(torch.OutOfMemoryError, match="1 images are too many"):
        evaluate(Gluttonous(at_most=0), split, Tensor.float)


def test_images_in_a_copy_on_write_file_are_read_and_left_alone(tmp_path: Path) -> None:
    np.save(tmp_path / "images.npy", np.full((5, 3, 4, 4), 7, dtype=np.uint8))
    mapped = torch.from_numpy(np.load(tmp_path / "images.npy", mmap_mode="c"))
    model = nn.Sequential(nn.Flatten(), nn.Linear(48, 3))
    error, loss = evaluate(
        model, Split(images=mapped, labels=torch.zeros(5, dtype=torch.int64)), Tensor.float
    )
    assert 0 <= error <= 1
    assert loss > 0
    assert (np.load(tmp_path / "images.npy") == 7).all()


def test_a_loss_that_is_not_finite_is_told() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(3, 3))
    nn.init.constant_(model.get_parameter("1.bias"), torch.nan)
    _, loss = evaluate(model, split_of([[1, 2, 3]], [0]), Tensor.float)
    assert np.isnan(loss)
