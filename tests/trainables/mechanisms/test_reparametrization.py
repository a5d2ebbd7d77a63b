"""Parametrised weights train in the place of plain ones and become plain again."""

from copy import deepcopy

import torch
from torch import Tensor, nn

from tests.trainables.methods.method_examples import pretrained
from tests.trainables.recipes import SMALL
from trainables.backbones import build as backbones
from trainables.backbones.layers import backbone_weights
from trainables.mechanisms.reparametrization import (
    merge,
    originals,
    parametrizations,
    reparametrize,
)


class Scaled(nn.Module):
    """The weight is a learned multiple of what it was."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.ones(1))

    def forward(self, original: Tensor) -> Tensor:
        return self.factor * original


def model() -> nn.Module:
    made = backbones.build(SMALL, num_classes=7)
    made.load_state_dict(pretrained())
    return made


def test_it_takes_the_place_of_every_weight_below_the_head() -> None:
    made = model()
    weights = {name: weight.clone() for name, weight in backbone_weights(made).items()}
    reparametrize(made, Scaled)
    thetas = originals(made)
    assert thetas.keys() == parametrizations(made).keys() == weights.keys()
    assert all(isinstance(part, Scaled) for part in parametrizations(made).values())
    assert "fc.weight" in dict(made.named_parameters())
    assert not dict(made.named_parameters()).keys() & weights.keys()
    for name, theta in thetas.items():
        assert theta.requires_grad
        assert torch.equal(theta, weights[name])


def test_a_merged_copy_is_plain_and_the_same_function() -> None:
    made, images = model().eval(), torch.randn(2, 3, 32, 32)
    reparametrize(made, Scaled)
    with torch.no_grad():
        for part in parametrizations(made).values():
            part.get_parameter("factor").mul_(1.5)
        plain = deepcopy(made)
        merge(plain)
        assert torch.equal(plain(images), made(images))
    assert plain.state_dict().keys() == model().state_dict().keys()
    assert type(plain.get_submodule("conv1.0")) is nn.Conv2d
    weight = backbone_weights(plain)["conv1.0.weight"]
    assert torch.equal(weight, 1.5 * pretrained()["conv1.0.weight"])
    assert originals(made).keys() == backbone_weights(plain).keys()


def test_a_plain_model_stays_as_it_is() -> None:
    made = model()
    merge(made)
    assert originals(made) == parametrizations(made) == {}
    assert all(torch.equal(v, pretrained()[n]) for n, v in made.state_dict().items())
