"""Number formats and layouts: what suits a device, and that a CPU can take the GPU's path."""

from pathlib import Path

import timm
import torch
from torch import Tensor, nn

from tests.trainables.recipes import make_recipe, make_trial, run, rung_uri
from trainables.images.store import ImageStore
from trainables.learning.freezing import train_mode
from trainables.learning.learner import Learner
from trainables.learning.precision import Precision
from trainables.measurement import Outcome

LIKE_A_GPU = Precision(autocast=torch.bfloat16, memory_format=torch.channels_last)


class Watched(nn.Module):
    """Remembers what goes in and what comes out."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.taken: list[Tensor] = []
        self.given: list[Tensor] = []

    def forward(self, inputs: Tensor) -> Tensor:
        logits: Tensor = self.model(inputs)
        self.taken.append(inputs)
        self.given.append(logits)
        return logits


def test_a_cpu_computes_in_float32_with_channels_last() -> None:
    assert Precision.of(torch.device("cpu")) == Precision(memory_format=torch.channels_last)
    assert Precision().autocast is None


def test_the_contiguous_layout_leaves_a_model_alone() -> None:
    model = timm.create_model("test_resnet")
    strides = [p.stride() for p in model.parameters()]
    assert Precision().lay_out(model) is model
    assert [p.stride() for p in model.parameters()] == strides


def test_weights_and_images_are_laid_out_and_features_left_alone() -> None:
    model = LIKE_A_GPU.lay_out(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Linear(4, 2)))
    weight = model.get_parameter("0.weight")
    assert weight.is_contiguous(memory_format=torch.channels_last)
    images = LIKE_A_GPU.images(torch.zeros(2, 3, 5, 5))
    assert images.is_contiguous(memory_format=torch.channels_last)
    features = torch.zeros(2, 7)
    assert LIKE_A_GPU.images(features) is features


def test_a_step_computes_in_bfloat16_and_keeps_everything_else_in_float32() -> None:
    model = timm.create_model("test_resnet", num_classes=4)
    train_mode(model)
    watched = Watched(model)
    learner = Learner(
        model,
        make_recipe(label_smoothing=0.1),
        trained=watched,
        seed=1,
        class_weights=None,
        precision=LIKE_A_GPU,
    )
    loss = learner.learn(
        torch.randn(4, 3, 16, 16), torch.tensor([0, 1, 2, 3]), step=0, total_steps=2
    )
    assert watched.given[0].dtype == torch.bfloat16
    assert watched.taken[0].is_contiguous(memory_format=torch.channels_last)
    assert loss.dtype == torch.float32
    for group in learner.tensors().values():
        assert all(t.dtype == torch.float32 for t in group.values() if t.is_floating_point())
    assert not torch.is_autocast_enabled("cpu"), "the context is left again"


def test_a_gpus_precision_learns_what_float32_learns_and_resumes_bit_for_bit(
    digits: ImageStore, tmp_path: Path
) -> None:
    levels = (4e8, 2e9)
    recipe = make_recipe(learning_rate=0.05, target_flops=levels[-1])
    plain = run(make_trial(digits, recipe, levels=levels))
    half = run(make_trial(digits, recipe, levels=levels, precision=LIKE_A_GPU), tmp_path)
    assert abs(half[-1].val_loss - plain[-1].val_loss) < 0.5, "of about 2.3 untrained"
    assert half[-1].val_loss != plain[-1].val_loss
    assert half[-1].val_error < 0.5
    again = make_trial(
        digits,
        recipe,
        levels=levels,
        precision=LIKE_A_GPU,
        resume_from=rung_uri(tmp_path, half[0].rung),
    )
    again.advance()
    assert again.outcome is Outcome.COMPLETE
    assert again.measurement is not None
    assert again.measurement.val_loss == half[-1].val_loss
