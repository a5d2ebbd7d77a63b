"""The training loss, against hand computation and PyTorch's own of soft targets."""

import pytest
import torch
import torch.nn.functional as F

from trainables.learning.losses import class_weights, training_loss
from trainables.learning.mixing import Targets

LABELS = torch.tensor([0] * 8 + [1] * 2 + [3] * 2)
"""Class 2 has no images."""


def logits(rows: int = 6, classes: int = 4) -> torch.Tensor:
    return torch.randn(rows, classes, generator=torch.Generator().manual_seed(0))


def test_no_exponent_no_weights() -> None:
    assert class_weights(LABELS, classes=4, exponent=0) is None


def test_an_exponent_of_one_counts_classes_alike() -> None:
    weights = class_weights(LABELS, classes=4, exponent=1)
    assert weights is not None
    # 8, 2, 2 images, in all 12: each class has a third of the weight
    assert weights.tolist() == pytest.approx([0.5, 2.0, 0.0, 2.0])
    assert weights.dtype == torch.float32


@pytest.mark.parametrize("exponent", [0.25, 0.5, 1.0])
def test_weights_are_in_proportion_and_one_in_the_mean_over_images(exponent: float) -> None:
    weights = class_weights(LABELS, classes=4, exponent=exponent)
    assert weights is not None
    assert weights[LABELS].mean().item() == pytest.approx(1)
    assert (weights[1] / weights[0]).item() == pytest.approx(4**exponent)
    assert weights[2] == 0


def test_the_plain_loss_is_pytorchs() -> None:
    labels = torch.tensor([0, 1, 3, 1, 2, 0])
    found = training_loss(logits(), Targets(labels=labels), label_smoothing=0.1, weights=None)
    assert torch.equal(found, F.cross_entropy(logits(), labels, label_smoothing=0.1))


@pytest.mark.parametrize("label_smoothing", [0.0, 0.2])
def test_the_mixed_loss_is_pytorchs_of_soft_targets(label_smoothing: float) -> None:
    labels, partners = torch.tensor([0, 1, 3, 1, 2, 0]), torch.tensor([1, 1, 0, 3, 2, 2])
    soft = 0.7 * F.one_hot(labels, 4) + 0.3 * F.one_hot(partners, 4)
    found = training_loss(
        logits(),
        Targets(labels=labels, partners=partners, share=0.7),
        label_smoothing=label_smoothing,
        weights=None,
    )
    expected = F.cross_entropy(logits(), soft, label_smoothing=label_smoothing)
    torch.testing.assert_close(found, expected)


def test_the_weighted_loss_of_a_batch_is_the_mean_of_its_parts() -> None:
    weights = class_weights(LABELS, classes=4, exponent=1)
    targets = Targets(labels=torch.tensor([0, 1, 3, 1, 0, 0]))

    def loss(rows: slice) -> torch.Tensor:
        return training_loss(
            logits()[rows], targets.part(rows), label_smoothing=0.1, weights=weights
        )

    torch.testing.assert_close(
        loss(slice(0, 6)), (loss(slice(0, 2)) + loss(slice(2, 4)) + loss(slice(4, 6))) / 3
    )


def test_the_weighted_loss_by_hand() -> None:
    labels = torch.tensor([0, 1])
    each = F.cross_entropy(logits(2), labels, reduction="none")
    found = training_loss(
        logits(2),
        Targets(labels=labels),
        label_smoothing=0.0,
        weights=torch.tensor([0.5, 2.0, 0.0, 2.0]),
    )
    assert found.item() == pytest.approx((0.5 * each[0] + 2 * each[1]).item() / 2)


def test_half_precision_logits_have_a_float32_loss() -> None:
    targets = Targets(labels=torch.tensor([0, 1, 3, 1, 2, 0]))
    found = training_loss(logits().bfloat16(), targets, label_smoothing=0.0, weights=None)
    assert found.dtype == torch.float32
