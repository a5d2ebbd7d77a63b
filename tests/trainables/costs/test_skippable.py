"""FLOPs that skipping zeros would save, by hand; dense hardware is billed in full."""

from pathlib import Path

import pytest
import torch
from torch import nn

from tests.trainables.recipes import make_recipe, make_trial, run, rung_uri
from trainables.backbones.source import BackboneSource
from trainables.costs.skippable import SkippableFlops
from trainables.images.store import ImageStore


@pytest.fixture
def net() -> nn.Sequential:
    """At 6 pixels a forward costs 2·36·216 and 2·36·32 FLOPs in its two convolutions."""
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 4, 1))


def test_a_step_saves_every_product_with_a_weight_that_is_held(net: nn.Sequential) -> None:
    skippable = SkippableFlops(net, resolution=6)
    skippable.step(10, shares={"0.weight": 0.5, "1.weight": 0.25})
    first, second = 2 * 36 * 216, 2 * 36 * 32
    # the first layer's input needs no gradient
    assert skippable.train_flops == 10 * (0.5 * 2 * first + 0.25 * 3 * second)
    skippable.forward(4, shares={"0.weight": 0.5})
    assert skippable.train_flops == 10 * (0.5 * 2 * first + 0.25 * 3 * second) + 4 * 0.5 * first


def test_inference_saves_the_zeros_that_are_there(net: nn.Sequential) -> None:
    skippable = SkippableFlops(net, resolution=6)
    assert skippable.inference_flops(net) == 0
    with torch.no_grad():
        net.get_parameter("0.weight")[:2] = 0
    assert skippable.inference_flops(net) == 2 * 36 * 216 * 2 / 8


def test_a_layer_that_no_image_passes_saves_nothing(digits: ImageStore) -> None:
    source = BackboneSource(model="tests.trainables.backbones.cifar_resnet:with_a_spare_layer")
    recipe = make_recipe(method="magnitude", settings={"sparsity": 0.9}, target_flops=2e9)
    (measured,) = run(make_trial(digits, recipe, source=source, levels=(2e9,)))
    assert measured.sparse_train_flops is not None
    assert 0.1 < measured.sparse_train_flops / measured.train_flops < 0.2


def test_a_dense_trial_has_nothing_to_skip(digits: ImageStore) -> None:
    (*_, last) = run(make_trial(digits, make_recipe()))
    assert last.sparse_train_flops == last.train_flops
    assert last.sparse_inference_flops == last.inference_flops
    assert last.nonzero_params is not None
    assert 0.99 * last.params < last.nonzero_params <= last.params


def test_a_checkpoint_says_nothing_twice(digits: ImageStore, tmp_path: Path) -> None:
    """The average is what is measured, so that it is stored once."""
    (first, *_) = run(make_trial(digits, make_recipe()), tmp_path)
    folder = Path(rung_uri(tmp_path, first.rung).removeprefix("file://"))
    groups = {path.stem for path in folder.glob("*.safetensors")}
    assert groups == {"model", "measured", "optimizer", "transfer"}
