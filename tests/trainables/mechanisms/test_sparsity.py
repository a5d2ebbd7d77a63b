"""Masks of exactly the sparsity asked for."""

from math import prod

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from trainables.errors import InputError
from trainables.mechanisms.sparsity import (
    SparsityScope,
    check_sparsity,
    erdos_renyi_counts,
    keep_counts,
    keep_largest,
    kept_values,
    uniform_counts,
)

SHAPES = {"conv": (4, 3, 3, 3), "wide": (16, 4, 1, 1), "tiny": (3, 2), "linear": (10, 16)}


def scores_of(seed: int = 0) -> dict[str, Tensor]:
    draws = torch.Generator().manual_seed(seed)
    return {name: torch.rand(shape, generator=draws) for name, shape in SHAPES.items()}


def kept(masks: dict[str, Tensor]) -> int:
    return sum(int(mask.count_nonzero()) for mask in masks.values())


@pytest.mark.parametrize("scope", list(SparsityScope))
@settings(max_examples=50)
@given(sparsity=st.floats(0.0, 0.98), seed=st.integers(0, 3))
def test_the_count_is_exact(scope: SparsityScope, sparsity: float, seed: int) -> None:
    masks = keep_largest(scores_of(seed), sparsity=sparsity, scope=scope)
    total = sum(prod(shape) for shape in SHAPES.values())
    assert total - kept(masks) == round(sparsity * total)
    assert all(mask.any() for mask in masks.values())
    assert {name: tuple(mask.shape) for name, mask in masks.items()} == SHAPES


@pytest.mark.parametrize("scope", list(SparsityScope))
def test_the_largest_stay(scope: SparsityScope) -> None:
    scores = scores_of()
    masks = keep_largest(scores, sparsity=0.7, scope=scope)
    groups = (
        [scores] if scope is SparsityScope.GLOBAL else [{name: scores[name]} for name in scores]
    )
    for group in groups:
        stay = torch.cat([scores[name][masks[name]] for name in group])
        go = torch.cat([scores[name][~masks[name]] for name in group])
        assert stay.min() > go.max()


def test_layers_are_equally_sparse_to_within_a_value() -> None:
    counts = uniform_counts(SHAPES, sparsity=0.83)
    assert all(abs(counts[n] - 0.17 * prod(shape)) <= 1 for n, shape in SHAPES.items())


def test_a_layer_of_small_scores_keeps_its_largest() -> None:
    scores = {**scores_of(), "wide": torch.linspace(0, 1e-6, 64).view(16, 4, 1, 1)}
    masks = keep_largest(scores, sparsity=0.9, scope=SparsityScope.GLOBAL)
    assert masks["wide"].flatten().nonzero().tolist() == [[63]]


@pytest.mark.parametrize("scope", list(SparsityScope))
def test_ties_go_to_those_that_come_first(scope: SparsityScope) -> None:
    equal = {"a": torch.ones(2, 5), "b": torch.ones(10)}
    masks = keep_largest(equal, sparsity=0.5, scope=scope)
    first = {SparsityScope.LAYER: (5, 5), SparsityScope.GLOBAL: (9, 1)}[scope]
    assert [int(mask.sum()) for mask in masks.values()] == list(first)
    assert masks["a"].flatten()[: first[0]].all()
    assert masks["b"][: first[1]].all()


def test_not_a_number_goes_first() -> None:
    scores = {"a": torch.tensor([torch.nan, 1.0, -1.0, torch.nan])}
    masks = keep_largest(scores, sparsity=0.5, scope=SparsityScope.LAYER)
    assert masks["a"].tolist() == [False, True, True, False]


def test_the_memory_format_changes_nothing() -> None:
    scores = {"conv": scores_of()["conv"].round(decimals=1)}  # with ties
    turned = {"conv": scores["conv"].to(memory_format=torch.channels_last)}
    masks, others = (
        keep_largest(s, sparsity=0.6, scope=SparsityScope.LAYER) for s in (scores, turned)
    )
    assert torch.equal(masks["conv"], others["conv"])


def test_counts_of_ones_own() -> None:
    counts = {"conv": 1, "wide": 64, "tiny": 2, "linear": 0}
    masks = keep_counts(scores_of(), counts)
    assert {name: int(mask.sum()) for name, mask in masks.items()} == counts


def test_erdos_renyi_densities_are_in_proportion() -> None:
    shapes = {"a": (64, 64, 3, 3), "b": (128, 64, 3, 3), "c": (128, 128)}
    counts = erdos_renyi_counts(shapes, sparsity=0.9)
    assert sum(counts.values()) == kept_values([prod(s) for s in shapes.values()], 0.9)
    ratios = [counts[name] / sum(shape) for name, shape in shapes.items()]
    assert max(ratios) / min(ratios) < 1.01


def test_erdos_renyi_leaves_small_layers_dense_and_the_total_as_it_is() -> None:
    counts = erdos_renyi_counts(SHAPES, sparsity=0.5)
    assert counts["tiny"] == 6
    assert sum(counts.values()) == kept_values([prod(s) for s in SHAPES.values()], 0.5)
    assert erdos_renyi_counts(SHAPES, sparsity=0.0) == {n: prod(s) for n, s in SHAPES.items()}


@pytest.mark.parametrize("sparsity", [1.0, -0.1, 1.5])
def test_a_sparsity_out_of_range_is_refused(sparsity: float) -> None:
    with pytest.raises(InputError, match=r"must lie in \[0, 1\)"):
        keep_largest(scores_of(), sparsity=sparsity, scope=SparsityScope.LAYER)


def test_a_sparsity_that_leaves_a_layer_nothing_is_refused() -> None:
    with pytest.raises(InputError, match=r"leaves 3 of 338 values to 4 layers.*at most 0\.98816"):
        keep_largest(scores_of(), sparsity=0.991, scope=SparsityScope.GLOBAL)


def test_a_model_without_weights_to_mask_is_refused() -> None:
    model = nn.Sequential(nn.AvgPool2d(2), nn.Flatten(), nn.Linear(12, 2))
    with pytest.raises(InputError, match="Sequential has no convolution or linear layer below"):
        check_sparsity(model, 0.5)
