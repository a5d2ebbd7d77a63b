"""Mixup and CutMix, against their formulas, and what they draw."""

from statistics import mean

import pytest
import torch
from torch import Tensor

from trainables.learning.mixing import Targets, mix

SIDE = 8


def batch(size: int = 6) -> tuple[Tensor, Tensor]:
    """Image n is n everywhere, and of class n."""
    values = torch.arange(size)
    return values.float().view(-1, 1, 1, 1).expand(size, 3, SIDE, SIDE).clone(), values


def test_without_strength_nothing_changes_and_nothing_is_drawn() -> None:
    images, labels = batch()
    mixed, targets = mix(images, labels, mixup=0, cutmix=0, seed=1)
    assert mixed is images
    assert targets == Targets(labels=labels)


@pytest.mark.parametrize("seed", range(5))
def test_mixup_is_the_weighted_mean_of_images_and_of_labels(seed: int) -> None:
    images, labels = batch()
    mixed, targets = mix(images, labels, mixup=1.0, cutmix=0, seed=seed)
    assert targets.partners is not None
    assert sorted(targets.partners.tolist()) == labels.tolist()
    assert 0 < targets.share < 1
    expected = targets.share * targets.labels + (1 - targets.share) * targets.partners
    for image, value in zip(mixed, expected, strict=True):
        torch.testing.assert_close(image, torch.full_like(image, float(value)))


@pytest.mark.parametrize("seed", range(20))
def test_cutmix_pastes_one_box_and_the_share_is_what_is_left(seed: int) -> None:
    images, labels = batch()
    before = images.clone()
    mixed, targets = mix(images, labels, mixup=0, cutmix=1.0, seed=seed)
    assert torch.equal(images, before), "the batch itself stays"
    assert targets.partners is not None
    boxes = set()
    for image, label, partner in zip(mixed, labels, targets.partners, strict=True):
        assert set(image.unique().tolist()) <= {float(label), float(partner)}
        if label != partner:
            pasted = image[0] == float(partner)
            assert pasted.sum() == round((1 - targets.share) * SIDE * SIDE)
            rows, columns = pasted.any(1).sum(), pasted.any(0).sum()
            assert rows * columns == pasted.sum(), "a rectangle"
            boxes.add(tuple(pasted.flatten().tolist()))
    assert len(boxes) == 1, "the same of every image"


def test_a_coin_decides_between_the_two() -> None:
    images, labels = batch()
    whole = 0
    for seed in range(200):
        mixed, targets = mix(images, labels, mixup=1.0, cutmix=1.0, seed=seed)
        assert targets.partners is not None
        moved = int((targets.partners != labels).nonzero()[0])
        value = mixed[moved].unique()
        whole += len(value) == 1 and value.item() not in labels.tolist()
    assert 70 < whole < 130


def test_strength_shapes_the_share() -> None:
    images, labels = batch()
    spread = [
        mean(abs(mix(images, labels, mixup=a, cutmix=0, seed=s)[1].share - 0.5) for s in range(200))
        for a in (0.1, 1.0, 20.0)
    ]
    assert spread == sorted(spread, reverse=True)
    assert spread[1] == pytest.approx(0.25, abs=0.03)  # Beta(1, 1) is uniform


def test_the_seed_makes_the_draw_and_leaves_the_global_streams_alone() -> None:
    images, labels = batch()
    torch.manual_seed(3)
    state = torch.get_rng_state()
    (one, first), (two, second), (three, third) = (
        mix(images, labels, mixup=0.2, cutmix=1.0, seed=seed) for seed in (4, 4, 5)
    )
    assert torch.equal(one, two)
    assert first.share == second.share
    assert not torch.equal(one, three) or first.share != third.share
    assert torch.equal(torch.get_rng_state(), state)


def test_targets_are_cut_like_the_batch() -> None:
    targets = Targets(labels=torch.arange(5), partners=torch.arange(5).flip(0), share=0.3)
    part = targets.part(slice(1, 3))
    assert part.labels.tolist() == [1, 2]
    assert part.partners is not None
    assert part.partners.tolist() == [3, 2]
    assert part.share == 0.3
    assert Targets(labels=torch.arange(5)).part(slice(0, 2)).partners is None


def test_a_batch_of_one_is_mixed_with_itself() -> None:
    images, labels = batch(1)
    mixed, targets = mix(images, labels, mixup=0.2, cutmix=0, seed=0)
    torch.testing.assert_close(mixed, images)
    assert targets.partners is not None
    assert targets.partners.tolist() == [0]
