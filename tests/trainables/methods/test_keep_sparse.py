"""A sparse backbone keeps its zeros, whatever is trained and however."""

from dataclasses import replace

import pytest
import torch

from search_spaces.space import missing_condition
from tests.known import known
from tests.trainables.mechanisms.sparse_models import (
    HEAD,
    PARAMS,
    WEIGHTS,
    steps,
    zeros,
    zeros_by_weight,
)
from tests.trainables.methods.example_runs import RunOf
from tests.trainables.methods.examples.keep_sparse import EXAMPLE, SPARSITY, sparse_weights
from tests.trainables.methods.method_examples import OPTIMIZERS, PROBLEM, pretrained
from tests.trainables.recipes import LEVELS, run
from trainables.backbones.layers import backbone_weights
from trainables.errors import InputError
from trainables.images.store import ImageStore

ARRIVED = round(SPARSITY * WEIGHTS)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_the_zeros_stay_and_nothing_else_goes(digits: ImageStore, optimizer: str) -> None:
    weights = sparse_weights()
    trial = EXAMPLE.but(**OPTIMIZERS[optimizer]).trial(digits)
    for _, model in steps(trial):
        assert zeros(model) == ARRIVED
    for name, weight in backbone_weights(trial.model).items():
        assert torch.equal(weight == 0, weights[name] == 0)
        kept = weights[name] != 0
        assert (weight[kept] != weights[name][kept]).float().mean() > 0.9


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_every_rung_and_the_export_have_them(run_of: RunOf, optimizer: str) -> None:
    whole = run_of("keep_sparse", optimizer)
    weights = sparse_weights()
    for _, model in whole.measured_models():
        assert zeros(model) == ARRIVED
    for name, zero in zeros_by_weight(whole.exported.module).items():
        assert zero == int((weights[name] == 0).sum())


def test_the_linear_regime_trains_the_head_alone(run_of: RunOf) -> None:
    whole = run_of("keep_sparse", "head")
    measured = whole.curve[-1]
    assert measured.updated_params == HEAD
    assert known(measured.sparse_train_flops) < 0.5 * measured.train_flops
    for name, weight in backbone_weights(whole.exported.module).items():
        assert torch.equal(weight, sparse_weights()[name])


def test_zeros_are_not_updated_and_could_be_skipped(digits: ImageStore) -> None:
    one = EXAMPLE.but(levels=LEVELS[:1])
    (sparse,) = run(one.trial(digits))
    (full,) = run(replace(one, method="full").trial(digits))
    assert sparse.updated_params == PARAMS - ARRIVED
    assert sparse.train_flops == full.train_flops
    assert known(sparse.sparse_train_flops) < 0.6 * known(full.sparse_train_flops)


def test_a_dense_backbone_is_refused() -> None:
    with pytest.raises(InputError, match="no weight of this ResNet is zero; choose a sparse"):
        replace(EXAMPLE, weights=pretrained).check()


def test_its_space_needs_a_sparse_backbone() -> None:
    assert missing_condition("keep_sparse", PROBLEM) is None
    dense = replace(PROBLEM, sparse_backbone=False)
    assert missing_condition("keep_sparse", dense) == "a backbone that arrives sparse"
