"""Skeletons: models without values, and what tells their structures apart."""

import copy

import pytest
from torch import nn

from trainables.backbones.skeleton import meta_copy, structure_key


def test_a_skeleton_has_the_structure_of_its_model_and_no_values() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
    model.get_parameter("0.weight").requires_grad = False
    skeleton = meta_copy(model)
    assert structure_key(skeleton, resolution=8) == structure_key(model, resolution=8)
    assert all(tensor.is_meta for tensor in skeleton.state_dict().values())
    assert not any(tensor.is_meta for tensor in model.state_dict().values())


@pytest.mark.parametrize("change", ["stride", "depth", "frozen", "resolution"])
def test_a_key_tells_what_a_trace_depends_on(change: str) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1))
    other = copy.deepcopy(model)
    if change == "stride":
        convolution = other[0]
        assert isinstance(convolution, nn.Conv2d)
        convolution.stride = (2, 2)
    if change == "depth":
        other.append(nn.ReLU())
    if change == "frozen":
        other.requires_grad_(requires_grad=False)
    resolution = 16 if change == "resolution" else 8
    assert structure_key(other, resolution=resolution) != structure_key(model, resolution=8)
