"""The baselines: what each trains, and that it is plain training of just that."""

import pytest
from torch import nn

from tests.trainables.methods.example_runs import RunOf
from tests.trainables.methods.examples.full import EXAMPLE as FULL
from tests.trainables.methods.examples.norm_and_head import EXAMPLE as NORM_AND_HEAD
from tests.trainables.methods.method_examples import pretrained
from tests.trainables.recipes import make_trial, run
from trainables.errors import InputError
from trainables.images.store import ImageStore

BASELINES = ("full", "linear_probe", "norm_and_head", "from_scratch", "last_stages")


def normless() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 4)
    )


@pytest.mark.parametrize("method", BASELINES)
def test_it_exports_a_backbone_of_which_no_more_than_its_part_moved(
    run_of: RunOf, method: str
) -> None:
    weights = pretrained()
    moved = {name for name, count in run_of(method, "sgd").changed().items() if count}
    if method == "linear_probe":
        assert not moved
    elif method == "norm_and_head":
        assert moved
        assert all(weights[name].ndim == 1 for name in moved)
    elif method == "last_stages":
        assert any(name.startswith("layer4") for name in moved)
        assert not any(name.startswith("conv1") for name in moved)
    else:
        assert {"conv1.0.weight", "layer4.0.conv1.weight"} <= moved


def test_from_scratch_is_full_finetuning_of_a_backbone_without_weights(
    digits: ImageStore, run_of: RunOf
) -> None:
    random = make_trial(digits, FULL.recipe(), levels=FULL.levels)
    scratch = run_of("from_scratch", "sgd").curve
    assert [m.val_loss for m in run(random)] == [m.val_loss for m in scratch]


def test_the_pretrained_weights_are_worth_something_else(run_of: RunOf) -> None:
    full, scratch = (run_of(method, "sgd").curve for method in ("full", "from_scratch"))
    assert [m.val_loss for m in full] != [m.val_loss for m in scratch]


def test_norms_and_head_have_no_weight_gradient_to_pay_for(run_of: RunOf) -> None:
    def step_flops(method: str) -> float:
        measured = run_of(method, "sgd").curve[0]
        return measured.train_flops / measured.images_seen

    full, norms, probe = map(step_flops, ("full", "norm_and_head", "linear_probe"))
    assert probe < norms < 0.75 * full


def test_updated_params_are_those_that_may_change(run_of: RunOf) -> None:
    parameters = dict(run_of("full", "sgd").exported.module.named_parameters())
    total = sum(p.numel() for p in parameters.values())
    head = sum(p.numel() for name, p in parameters.items() if name.startswith("fc."))
    vectors = sum(p.numel() for n, p in parameters.items() if p.ndim == 1 and "fc" not in n)
    counted = {method: run_of(method, "sgd").curve[-1].updated_params for method in BASELINES}
    assert counted["full"] == counted["from_scratch"] == total
    assert counted["linear_probe"] == head
    assert counted["norm_and_head"] == head + vectors
    assert head < counted["last_stages"] < total


def test_a_model_without_norms_is_refused() -> None:
    with pytest.raises(InputError, match="norm_and_head trains norms, and Sequential has none"):
        NORM_AND_HEAD.check(normless())
