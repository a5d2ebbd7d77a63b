import pytest
import torch
from torch import Tensor

from trainables.images.augment import augment, model_inputs


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def images() -> Tensor:
    """Smooth colours that differ everywhere, so that any change shows."""
    ramp = torch.linspace(20, 235, 32)
    one = torch.stack(
        [
            ramp.expand(32, 32),
            ramp.view(32, 1).expand(32, 32),
            ramp.flip(0) * ramp / 255 + torch.zeros(32, 1),
        ]
    )
    return one.round().to(torch.uint8).repeat(64, 1, 1, 1)


def test_strength_nought_changes_nothing(images: Tensor) -> None:
    out = augment(images, strength=0, mirror=True, generator=generator())
    assert out.dtype == torch.float32
    assert torch.equal(out, images.float())


def test_each_image_is_changed_in_its_own_way(images: Tensor) -> None:
    out = augment(images, strength=0.5, mirror=False, generator=generator())
    assert out.shape == images.shape
    assert out.dtype == torch.float32
    assert out.min() >= 0
    assert out.max() <= 255
    assert len({float(image.mean()) for image in out}) == len(images)


def test_the_generator_decides(images: Tensor) -> None:
    one, same, other = (
        augment(images, strength=0.5, mirror=True, generator=generator(seed)) for seed in (1, 1, 2)
    )
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


def test_global_randomness_is_left_alone(images: Tensor) -> None:
    before = torch.get_rng_state()
    augment(images, strength=0.5, mirror=True, generator=generator())
    assert torch.equal(torch.get_rng_state(), before)


def test_change_grows_with_strength(images: Tensor) -> None:
    changes = [
        (augment(images, strength=s, mirror=False, generator=generator()) - images).abs().mean()
        for s in (0.01, 0.1, 0.5, 1.0)
    ]
    assert changes == sorted(changes)
    assert changes[0] < 2
    assert changes[-1] > 10


def test_mirror_flips_about_half(images: Tensor) -> None:
    flipped = augment(images, strength=1e-6, mirror=True, generator=generator())
    is_flipped = (flipped - images.flip(3)).abs().amax(dim=(1, 2, 3)) < 0.1
    is_kept = (flipped - images).abs().amax(dim=(1, 2, 3)) < 0.1
    assert (is_flipped ^ is_kept).all()
    assert 16 < is_flipped.sum() < 48


def test_without_mirror_nothing_flips(images: Tensor) -> None:
    kept = augment(images, strength=1e-6, mirror=False, generator=generator())
    assert (kept - images).abs().max() < 0.1


def test_a_shear_slants_the_axes_as_far_as_its_formula_says() -> None:
    """A turn and a crop leave axes at right angles; [[1, x], [y, 1]] with x = y = 0.3 does not."""
    ramp = torch.linspace(110, 140, 32)
    across, down = ramp.expand(512, 3, 32, 32), ramp.view(32, 1).expand(512, 3, 32, 32)
    rows = []
    for grey in (across, down):  # of the same images: where they look, across and down
        out = augment(grey, strength=1.0, mirror=True, generator=generator())[:, 0]
        rows.append(torch.stack([out[:, 16, 17] - out[:, 16, 15], out[:, 17, 16] - out[:, 15, 16]]))
    to_the_right, downwards = torch.stack(rows, dim=1)
    cosines = torch.cosine_similarity(to_the_right, downwards, dim=0)
    limit = 0.6 / 1.09
    assert -limit - 1e-3 <= cosines.min() < -0.9 * limit
    assert 0.9 * limit < cosines.max() <= limit + 1e-3
    assert abs(cosines.mean()) < 0.03


def test_grey_stays_grey(images: Tensor) -> None:
    grey = images[:, :1].expand(-1, 3, -1, -1)
    out = augment(grey, strength=1.0, mirror=True, generator=generator())
    assert torch.allclose(out[:, :1].expand_as(out), out, atol=1e-3)


def test_borders_are_filled_from_within() -> None:
    white = torch.full((64, 3, 16, 16), 200, dtype=torch.uint8)
    out = augment(white, strength=1.0, mirror=True, generator=generator())
    assert (out - out[:, :, :1, :1]).abs().max() < 1e-2


def test_colours_follow_the_formula_at_the_extremes() -> None:
    """A flat grey image knows neither contrast nor saturation: brightness alone remains."""
    grey = torch.full((4096, 3, 4, 4), 100, dtype=torch.uint8)
    out = augment(grey, strength=1.0, mirror=False, generator=generator())[:, 0, 0, 0]
    assert 60 <= out.min() < 61
    assert 139 < out.max() <= 140.01


def test_images_may_be_floats(images: Tensor) -> None:
    as_bytes, as_floats = (
        augment(x, strength=0.5, mirror=True, generator=generator())
        for x in (images, images.float())
    )
    assert torch.equal(as_bytes, as_floats)


@pytest.mark.parametrize("strength", [-0.1, 1.1, float("nan")])
def test_strength_is_checked(images: Tensor, strength: float) -> None:
    with pytest.raises(ValueError, match="must lie in"):
        augment(images, strength=strength, mirror=False, generator=generator())


def test_prepared_images_are_normalised(images: Tensor) -> None:
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    out = model_inputs(images, resolution=32, mean=mean, std=std)
    expected = (images[0, 1, 5, 6] / 255 - mean[1]) / std[1]
    assert out[0, 1, 5, 6] == pytest.approx(float(expected), abs=1e-5)
    tensors = model_inputs(images, resolution=32, mean=torch.tensor(mean), std=torch.tensor(std))
    assert torch.equal(out, tensors)


def test_prepared_images_are_resized_without_aliasing() -> None:
    stripes = torch.tensor([0, 255], dtype=torch.uint8).repeat(1, 3, 32, 16)
    out = model_inputs(stripes, resolution=8, mean=(0, 0, 0), std=(1, 1, 1))
    assert out.shape == (1, 3, 8, 8)
    assert (out - 0.5).abs().max() < 0.1
