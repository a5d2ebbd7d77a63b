"""The learner: what is switched off does nothing, and parts of a batch are the batch."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from search_spaces.recipe import Optimizer, Recipe, Schedule
from tests.trainables.recipes import make_recipe
from trainables.learning.freezing import train_mode
from trainables.learning.learner import Learner
from trainables.learning.losses import class_weights
from trainables.learning.precision import Precision
from trainables.seeds import derive_seed

BATCH, STEPS = 12, 8


class Gluttonous(nn.Module):
    """A model that runs out of memory on more images than it can take."""

    def __init__(self, model: nn.Module, *, at_most: int) -> None:
        super().__init__()
        self.model = model
        self.at_most = at_most
        self.sizes: list[int] = []
        """Size of every batch it was given."""

    def forward(self, images: Tensor) -> Tensor:
        self.sizes.append(len(images))
        if len(images) > self.at_most:
            raise torch.OutOfMemoryError(f"{len(images)} images are too many.")
        logits: Tensor = self.model(images)
        return logits


def normless() -> nn.Module:
    """Has a dropout-free forward in which every image stands for itself."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.GELU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(24, 4)
    )


def batch(step: int) -> tuple[Tensor, Tensor]:
    draws = torch.Generator().manual_seed(step)
    images = torch.randn(BATCH, 3, 16, 16, generator=draws)
    return images, torch.randint(4, (BATCH,), generator=draws)


def learner(
    model: nn.Module,
    recipe: Recipe,
    *,
    trained: nn.Module | None = None,
    precision: Precision | None = None,
) -> Learner:
    train_mode(model)
    return Learner(
        model,
        recipe,
        trained=trained or model,
        seed=3,
        class_weights=class_weights(
            torch.tensor([0] * 9 + [1, 2, 3]), classes=4, exponent=recipe.class_weighting
        ),
        precision=precision or Precision(),
    )


def learnt(one: Learner, steps: range = range(STEPS)) -> list[float]:
    return [one.learn(*batch(step), step=step, total_steps=STEPS).item() for step in steps]


def test_with_everything_off_it_is_plain_training_bit_for_bit() -> None:
    def resnet() -> nn.Module:
        torch.manual_seed(1)
        model: nn.Module = timm.create_model("test_resnet", num_classes=4, drop_rate=0.2)
        return model.requires_grad_().train()

    recipe = make_recipe(learning_rate=0.05, label_smoothing=0.1, batch_size=BATCH)
    model, plain = resnet(), resnet()
    losses = learnt(learner(model, recipe))

    decayed = [p for p in plain.parameters() if p.ndim > 1]
    spared = [p for p in plain.parameters() if p.ndim == 1]
    groups: list[dict[str, Any]] = [{"params": decayed}, {"params": spared, "weight_decay": 0.0}]
    optimizer = torch.optim.SGD(
        groups,
        lr=0.05,
        momentum=0.9,
        nesterov=True,
        weight_decay=1e-4,
        fused=True,
    )
    expected = []
    for step in range(STEPS):
        images, labels = batch(step)
        torch.manual_seed(derive_seed(3, "step", step))
        for group in optimizer.param_groups:
            # a tenth of eight steps is one of warm-up
            progress = (step - 1) / (STEPS - 1)
            factor = 0.5 * (1 + math.cos(math.pi * progress)) if step else 1.0
            group["lr"] = 0.05 * factor
        loss = F.cross_entropy(plain(images), labels, label_smoothing=0.1)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        expected.append(loss.item())
    assert losses == expected
    for name, value in plain.state_dict().items():
        assert torch.equal(model.state_dict()[name], value), name


@pytest.mark.parametrize(
    "changes",
    [
        {"clip_norm": 0.01},
        {"mixup": 0.4},
        {"cutmix": 1.0},
        {"class_weighting": 1.0},
        {"schedule": Schedule.LINEAR},
        {"optimizer": Optimizer.ADAMW},
        {"optimizer": Optimizer.SCHEDULE_FREE_ADAMW, "schedule": Schedule.CONSTANT},
    ],
    ids=str,
)
def test_whatever_is_switched_on_changes_the_weights_and_repeats(changes: dict[str, Any]) -> None:
    def weights(**values: Any) -> Tensor:
        model = normless()
        learnt(learner(model, make_recipe(**values)))
        return model.get_parameter("4.weight").detach()

    assert torch.equal(weights(**changes), weights(**changes))
    assert not torch.allclose(weights(**changes), weights(), rtol=1e-4)


def test_a_clipped_gradient_keeps_its_direction_and_has_the_norm_asked_for() -> None:
    def gradients(clip_norm: float) -> Tensor:
        model = normless()
        learnt(learner(model, make_recipe(clip_norm=clip_norm, learning_rate=1e-9)), range(1))
        return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])

    free, clipped = gradients(0.0), gradients(0.01)
    assert free.norm() > 0.1
    assert clipped.norm().item() == pytest.approx(0.01, rel=1e-3)
    torch.testing.assert_close(clipped, free * (0.01 / free.norm()), rtol=1e-3, atol=1e-8)
    assert torch.equal(gradients(1e6), free), "a norm below is left alone"


EVERYTHING: dict[str, Any] = {
    "mixup": 0.4,
    "cutmix": 1.0,
    "class_weighting": 0.5,
    "label_smoothing": 0.1,
    "clip_norm": 0.5,
}


@pytest.mark.parametrize("at_most", [7, 4, 1])
@pytest.mark.parametrize("changes", [{}, EVERYTHING], ids=["plain", "everything"])
def test_out_of_memory_halves_the_parts_and_keeps_the_recipe(
    at_most: int, changes: dict[str, Any]
) -> None:
    recipe = make_recipe(batch_size=BATCH, **changes)
    whole, model = normless(), normless()
    losses = learnt(learner(whole, recipe))
    poor = Gluttonous(model, at_most=at_most)
    halved = learnt(learner(model, recipe, trained=poor))
    assert halved == pytest.approx(losses, rel=1e-5)
    for one, other in zip(model.parameters(), whole.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)
    parts = {7: [12, 6, 6], 4: [12, 6, 3, 3, 3, 3], 1: [12, 6, 3, 1, 2] + 12 * [1]}[at_most]
    assert poor.sizes[: len(parts)] == parts


def test_it_goes_on_in_the_parts_that_fitted() -> None:
    model = normless()
    poor = Gluttonous(model, at_most=3)
    learnt(learner(model, make_recipe(), trained=poor))
    assert poor.sizes == [12, 6] + 4 * STEPS * [3]


def test_parts_end_where_a_batch_norm_would_see_one_image() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(784, 4))
    poor = Gluttonous(model, at_most=1)
    with pytest.raises(torch.OutOfMemoryError, match="2 images are too many"):
        learnt(learner(model, make_recipe(), trained=poor))
    assert poor.sizes == [12, 6, 3, 2]


def test_what_fits_in_no_part_fails() -> None:
    model = normless()
    poor = Gluttonous(model, at_most=0)
    with pytest.raises(torch.OutOfMemoryError, match="1 images are too many"):
        learnt(learner(model, make_recipe(), trained=poor))
    assert min(poor.sizes) == 1


def test_a_failed_attempt_leaves_no_gradient_behind() -> None:
    """The first part of a step fits and its second does not: only the repeated step counts."""

    class SecondFails(Gluttonous):
        def forward(self, images: Tensor) -> Tensor:
            self.at_most = 3 if len(self.sizes) == 2 else 6
            return super().forward(images)

    whole, model = normless(), normless()
    learnt(learner(whole, make_recipe()), range(1))
    poor = SecondFails(model, at_most=6)
    learnt(learner(model, make_recipe(), trained=poor), range(1))
    assert poor.sizes == [12, 6, 6, 3, 3, 3, 3]
    for one, other in zip(model.parameters(), whole.parameters(), strict=True):
        torch.testing.assert_close(one, other)


def restored(kind: Callable[[], nn.Module], recipe: Recipe, saved: Learner) -> Learner:
    twin = learner(kind(), recipe)
    tensors = {
        group: {name: value.clone() for name, value in values.items()}
        for group, values in saved.tensors().items()
    }
    twin.restore(tensors, saved.state())
    return twin


def test_a_restored_learner_goes_on_in_its_parts() -> None:
    model = normless()
    recipe = make_recipe()
    poor = learner(model, recipe, trained=Gluttonous(model, at_most=3))
    learnt(poor, range(4))
    twin = restored(normless, recipe, poor)
    assert learnt(poor, range(4, STEPS)) == learnt(twin, range(4, STEPS))
    assert all(
        torch.equal(one, other)
        for one, other in zip(
            poor.tensors()["model"].values(), twin.tensors()["model"].values(), strict=True
        )
    )
