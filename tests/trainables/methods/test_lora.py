"""LoRA: updates of the rank asked for, paid for, on convolutions of every kind, merged."""

from copy import deepcopy
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from search_spaces.draws import check_space
from search_spaces.methods.lora import lora
from tests.trainables.methods.example_runs import RunOf
from tests.trainables.methods.examples.lora import EXAMPLE
from tests.trainables.methods.method_examples import PROBLEM
from trainables.backbones.layers import backbone_weights
from trainables.costs.flops import count_flops
from trainables.errors import InputError
from trainables.method import Transfer
from trainables.methods.lora import Lora, LowRankUpdate

RANK = 2


def adapted(plain: nn.Module, *, norms: bool = True) -> tuple[nn.Module, Transfer]:
    model = deepcopy(plain)
    transfer = Lora(rank=RANK, alpha=4.0, norms=norms, seed=1)
    transfer.attach(model)
    return model, transfer


def updates(model: nn.Module) -> list[LowRankUpdate]:
    return [module for module in model.modules() if isinstance(module, LowRankUpdate)]


def images() -> Tensor:
    return torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def test_it_exports_updates_of_low_rank(run_of: RunOf) -> None:
    whole = run_of("lora", "undisturbed")
    weights = whole.example.weights()
    for name, weight in backbone_weights(whole.exported.module).items():
        moved = (weight.detach() - weights[name]).flatten(1).double()
        sizes = torch.linalg.svdvals(moved)
        assert sizes[0] > 0
        assert (sizes[RANK:] < 1e-2 * sizes[0]).all()  # what rounding leaves


def test_norms_move_only_where_they_are_trained(run_of: RunOf) -> None:
    with_norms, without = (run_of("lora", name) for name in ("undisturbed", "without_norms"))
    parameters = without.exported.module.named_parameters()
    vectors = {name for name, p in parameters if p.ndim == 1 and "fc" not in name}
    assert with_norms.changed()["layer1.0.bn1.weight"] > 0
    assert not any(count for name, count in without.changed().items() if name in vectors)


@pytest.mark.parametrize(
    "name", ["test_resnet", "mobilenetv2_050", "tf_mobilenetv3_small_minimal_100"]
)
def test_the_first_model_is_the_backbone_and_the_last_is_merged(name: str) -> None:
    torch.manual_seed(0)
    plain = timm.create_model(name, num_classes=5).eval()
    model, transfer = adapted(plain)
    assert torch.equal(model(images()), plain(images()))
    with torch.no_grad():
        for update in updates(model):
            update.up.normal_(std=0.01, generator=torch.Generator().manual_seed(3))
    logits = model(images())
    assert not torch.allclose(logits, plain(images()))
    merged = transfer.plain_model(model)
    assert torch.equal(merged(images()), logits)
    assert torch.equal(model(images()), logits), "the model that is trained lost its weights"
    assert [type(m) for m in merged.modules()] == [type(m) for m in plain.modules()]


def test_a_step_costs_full_finetuning_and_the_products_of_the_adapters() -> None:
    plain = timm.create_model("mobilenetv2_050", num_classes=5)
    model, _ = adapted(plain)
    cost, full = (count_flops(one, resolution=32) for one in (model, plain))
    products = sum(2 * u.up.numel() * u.down.shape[1] for u in updates(model))
    assert cost.forward_flops == full.forward_flops
    assert cost.train_flops == full.train_flops
    assert cost.fixed_flops == 3 * products


@pytest.mark.parametrize(("name", "norms"), [("sgd", True), ("without_norms", False)])
def test_what_is_trained_is_counted(run_of: RunOf, name: str, norms: bool) -> None:
    curve = run_of("lora", name).curve
    weights = backbone_weights(timm.create_model("test_resnet", num_classes=4))
    factors = sum(RANK * (len(w) + w[0].numel()) for w in weights.values())
    assert curve[-1].updated_params == factors + 97 * 4 + norms * 2080


def test_no_rank_is_above_the_matrixs_own() -> None:
    update = LowRankUpdate(torch.zeros(8, 1, 3, 3), rank=32, scale=1.0, draws=torch.Generator())
    assert update.up.shape == (8, 8)
    assert update.down.shape == (8, 9)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rank": -1}, "rank=-1 must be greater than or equal to 0"),
        ({"rank": 2.5}, "rank=2.5 must be a valid integer"),
        ({"alpha": 0.0}, "alpha=0.0 must be greater than 0"),
        ({"norms": 1}, "norms=1 must be a valid boolean"),
    ],
)
def test_bad_settings_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        EXAMPLE.but(settings=settings).check()


def test_its_space_draws_small_ranks_and_large_ones() -> None:
    ranks = [int(r.settings["rank"]) for r in check_space(lora, {}, PROBLEM).recipes]
    assert min(ranks) == 1
    assert 16 < max(ranks) <= 32
