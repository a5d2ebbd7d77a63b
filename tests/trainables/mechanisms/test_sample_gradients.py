"""Gradients of single images: those of autograd, at the cost that the meter tells."""

import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from trainables.backbones.layers import backbone_weights
from trainables.costs.flops import count_flops
from trainables.mechanisms.sample_gradients import gradients_of, sample_gradients


def backbone(name: str = "test_resnet") -> nn.Module:
    torch.manual_seed(0)
    made: nn.Module = timm.create_model(name, num_classes=4, drop_rate=0.5)
    return made.train()


def batches() -> list[tuple[Tensor, Tensor]]:
    images = torch.randn(5, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    return list(zip(images.split(3), (torch.arange(5) % 4).split(3), strict=True))


def test_their_mean_is_the_gradient_of_the_mean_loss() -> None:
    model = backbone()
    found = list(sample_gradients(model, batches()))
    assert model.training
    assert all(p.grad is None for p in model.parameters())
    images, labels = (torch.cat(parts) for parts in zip(*batches(), strict=True))
    F.cross_entropy(model.eval()(images), labels).backward()
    for name, parameter in model.named_parameters():
        mean = torch.stack([gradient[name] for gradient in found]).mean(0)
        torch.testing.assert_close(mean, parameter.grad, rtol=1e-3, atol=1e-6)
    assert not torch.equal(found[0]["conv1.0.weight"], found[1]["conv1.0.weight"])


def test_only_what_is_asked_for_is_differentiated_and_paid_for() -> None:
    model = backbone("mobilenetv2_050")
    names = backbone_weights(model).keys()
    dense = count_flops(model, resolution=32).train_flops
    with gradients_of(model, names), FlopCounterMode(display=False) as counter:
        (gradient,) = sample_gradients(model, [(batches()[0][0][:1], batches()[0][1][:1])])
        cost = count_flops(model, resolution=32).train_flops
    assert gradient.keys() == names
    assert cost < dense
    # the counter's own formula counts the weight gradient of grouped convolutions too often
    assert counter.get_total_flops() >= cost
    assert all(p.requires_grad for p in model.parameters())


def test_the_cost_is_what_is_executed() -> None:
    model = backbone()
    last = [name for name in backbone_weights(model) if name.startswith("layer4")]
    for names in (backbone_weights(model).keys(), last):
        with gradients_of(model, names):
            cost = count_flops(model, resolution=32).train_flops
            with FlopCounterMode(display=False) as counter:
                list(sample_gradients(model, batches()))
        assert counter.get_total_flops() == 5 * cost


def test_a_parameter_that_is_left_out_has_no_gradient() -> None:
    class Spare(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used = nn.Linear(3, 4)
            self.spare = nn.Linear(2, 2)

        def forward(self, images: Tensor) -> Tensor:
            mapped: Tensor = self.used(images.mean((2, 3)))
            return mapped

    (gradient, *_) = sample_gradients(Spare(), batches())
    assert not gradient["spare.weight"].any()
    assert gradient["used.weight"].any()
