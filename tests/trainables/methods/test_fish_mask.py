"""FISH mask: exactly k values of the backbone change, those with the largest Fisher."""

from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import nn

from tests.trainables.contexts import make_context
from tests.trainables.methods.example_runs import RunOf
from tests.trainables.methods.examples.fish_mask import EXAMPLE
from tests.trainables.methods.method_examples import OPTIMIZERS
from tests.trainables.recipes import LEVELS, run
from trainables.costs.flops import count_flops
from trainables.errors import InfeasibleError, InputError
from trainables.images.store import ImageStore
from trainables.learning.batch_norm import trained_batch_norms
from trainables.learning.freezing import train_mode
from trainables.mechanisms.anchors import AnchoredTransfer
from trainables.method import Transfer
from trainables.methods import fish_mask

HEAD = 96 * 4 + 4
BACKBONE = 373_076 - HEAD


def backbone() -> nn.Module:
    torch.manual_seed(0)
    made: nn.Module = timm.create_model("test_resnet", num_classes=5)
    return made


def prepared_transfer(model: nn.Module, settings: dict[str, Any]) -> Transfer:
    """The transfer at work on a model that was prepared with these settings."""
    context = make_context(model, settings)
    prepared = fish_mask.prepare(model, context)
    transfer = fish_mask.transfer(context.recipe, prepared.structure)
    transfer.attach(model)
    transfer.restore(prepared.tensors, {})
    return transfer


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_exactly_k_values_of_the_exported_backbone_change(run_of: RunOf, optimizer: str) -> None:
    counts = run_of("fish_mask", optimizer).changed()
    k = round(0.005 * BACKBONE)
    assert sum(counts.values()) == k
    assert 0 < sum(count > 0 for count in counts.values()) < len(counts)


def test_updated_params_are_k_and_the_head(digits: ImageStore) -> None:
    for share in (0.001, 0.2):
        curve = run(EXAMPLE.but(settings={"share": share}, levels=LEVELS[:1]).trial(digits))
        assert curve[-1].updated_params == round(share * BACKBONE) + HEAD
        assert curve[-1].sparse_train_flops == curve[-1].train_flops


def test_the_values_with_the_largest_fisher_are_free() -> None:
    model = backbone()
    context = make_context(model, {"share": 0.01, "samples": 6})
    expected = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    model.eval()
    for images, labels in context.labelled(6):
        for image, label in zip(images, labels, strict=True):
            model.zero_grad()
            F.cross_entropy(model(image[None]), label[None]).backward()
            for name, parameter in model.named_parameters():
                assert parameter.grad is not None
                expected[name] += parameter.grad.square()
    model.zero_grad()
    del expected["fc.weight"], expected["fc.bias"]
    transfer = prepared_transfer(model, {"share": 0.01, "samples": 6})
    assert isinstance(transfer, AnchoredTransfer)
    held = [expected[name][~mask] for name, mask in transfer.masks.items()]
    frozen = [n for n, p in model.named_parameters() if not p.requires_grad]
    held += [expected[name].flatten() for name in frozen]
    free = torch.cat([expected[name][mask] for name, mask in transfer.masks.items()])
    values = sum(sums.numel() for sums in expected.values())
    assert len(free) == round(0.01 * values) == values - sum(len(part) for part in held)
    assert free.min() >= torch.cat(held).max()


def test_choosing_costs_a_forward_and_backward_pass_for_every_image() -> None:
    model = backbone()
    with_head = count_flops(model, resolution=32).train_flops
    head = 2 * 96 * 5  # of its weight's gradient
    for asked, used in ((12, 12), (100, 40)):
        context = make_context(model, {"share": 0.01, "samples": asked}, images=40)
        assert fish_mask.prepare(model, context).flops == used * (with_head - head)
    assert all(p.requires_grad for p in model.parameters())


def test_a_layer_without_a_chosen_value_has_no_weight_gradient_to_pay_for() -> None:
    model = backbone()
    dense = count_flops(model, resolution=32).train_flops
    prepared_transfer(model, {"share": 1e-4, "samples": 8})
    frozen = [name for name, p in model.named_parameters() if not p.requires_grad]
    assert frozen
    assert all(name.endswith(".weight") and ".bn" not in name for name in frozen)
    assert count_flops(model, resolution=32).train_flops < dense
    train_mode(model)
    norms = [name for name, m in model.named_modules() if isinstance(m, nn.BatchNorm2d)]
    assert list(trained_batch_norms(model)) == norms, "statistics follow the images everywhere"


def test_no_image_and_an_infinite_gradient_are_infeasible() -> None:
    model = backbone()
    nothing = make_context(model, {"share": 0.01}, images=0)
    with pytest.raises(InfeasibleError, match="There is no labelled image"):
        fish_mask.prepare(model, nothing)
    with torch.no_grad():
        model.get_parameter("conv1.0.weight")[0] = torch.inf
    context = make_context(model, {"share": 0.01, "samples": 3})
    with pytest.raises(InfeasibleError, match="The gradient of .* is not finite") as caught:
        fish_mask.prepare(model, context)
    assert caught.value.spent_flops > 0


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"share": 1.5}, "share=1.5 must be less than or equal to 1"),
        ({"share": 0.0}, "share=0.0 must be greater than 0"),
        ({"share": 1e-7}, "share=1e-07 of the 372688 values below the head is less than one"),
        ({"samples": 0}, "samples=0 must be greater than or equal to 1"),
    ],
)
def test_bad_settings_are_refused(settings: dict[str, Any], complaint: str) -> None:
    with pytest.raises(InputError, match=complaint):
        EXAMPLE.but(settings=settings).check()
