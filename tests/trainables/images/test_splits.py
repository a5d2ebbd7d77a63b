from collections.abc import Mapping, Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainables.errors import InputError, Key
from trainables.images.splits import (
    TRAIN_SHARES,
    Labels,
    plan_splits,
    stratified_cut,
    stratified_sample,
)

RULES = [shares for shares in TRAIN_SHARES.values() if len(shares) > 1]


def labels_of(counts: list[int], *, seed: int = 0) -> Labels:
    labels = np.repeat(np.arange(len(counts)), counts)
    return np.random.default_rng(seed).permutation(labels)


class_counts = st.lists(st.integers(3, 60), min_size=2, max_size=30)


@given(counts=class_counts, rule=st.sampled_from(RULES), seed=st.integers(0, 2**64 - 1))
def test_a_cut_is_disjoint_covering_stratified_and_repeatable(
    counts: list[int], rule: Mapping[str, int], seed: int
) -> None:
    labels = labels_of(counts)
    required = [name for name in rule if name != "devtest"]
    cut = stratified_cut(labels, shares=rule, required=required, seed=seed)

    together = np.concatenate(list(cut.values()))
    assert sorted(together) == list(range(len(labels)))
    for name, share in rule.items():
        found = np.bincount(labels[cut[name]], minlength=len(counts))
        assert (np.abs(found - np.array(counts) * share / 100) <= 1).all()
        assert name not in required or found.min() >= 1
        assert (np.diff(cut[name]) > 0).all()
    again = stratified_cut(labels, shares=rule, required=required, seed=seed)
    assert all((cut[name] == again[name]).all() for name in rule)


@given(counts=st.lists(st.integers(10, 60), min_size=2, max_size=30), rule=st.sampled_from(RULES))
def test_equal_roundings_do_not_add_up(counts: list[int], rule: Mapping[str, int]) -> None:
    labels = labels_of(counts)
    cut = stratified_cut(labels, shares=rule, required=[], seed=0)
    for name, share in rule.items():
        assert abs(len(cut[name]) - len(labels) * share / 100) <= 2


def test_a_cut_is_the_same_on_every_machine() -> None:
    cut = stratified_cut(
        np.repeat([0, 1], 10), shares={"a": 70, "b": 30}, required=["a", "b"], seed=7
    )
    assert cut["b"].tolist() == [1, 5, 7, 16, 17, 19]


def test_seeds_cut_differently() -> None:
    labels = labels_of([50, 50])
    one, two = (
        stratified_cut(labels, shares=RULES[0], required=[], seed=seed)["test"] for seed in (0, 1)
    )
    assert one.tolist() != two.tolist()


def test_row_order_tells_nothing_of_the_split() -> None:
    labels = np.zeros(4000, dtype=np.int64)
    test = stratified_cut(labels, shares=RULES[0], required=[], seed=0)["test"]
    assert abs(test.mean() - 1999.5) < 4 * 4000 / np.sqrt(12 * len(test))


@given(counts=class_counts, data=st.data())
def test_a_sample_has_the_size_asked_for_and_every_class(
    counts: list[int], data: st.DataObject
) -> None:
    labels = labels_of(counts)
    limit = data.draw(st.integers(len(counts), sum(counts)))
    chosen = stratified_sample(labels, limit=limit, seed=3, key=Key("limit"))
    assert len(set(chosen.tolist())) == len(chosen) == limit
    assert np.bincount(labels[chosen], minlength=len(counts)).min() >= 1


def test_a_sample_keeps_proportions() -> None:
    labels = labels_of([900, 90, 10])
    chosen = stratified_sample(labels, limit=100, seed=0, key=Key("limit"))
    assert np.bincount(labels[chosen]).tolist() == pytest.approx([90, 9, 1], abs=2)


def test_a_sample_no_smaller_than_the_whole_is_the_whole() -> None:
    assert stratified_sample(labels_of([2, 2]), limit=9, seed=0, key=Key("limit")).tolist() == [
        0,
        1,
        2,
        3,
    ]


def test_a_sample_under_the_number_of_classes_is_refused() -> None:
    with pytest.raises(InputError, match=r"max_train_images=2 must be at least .* 3"):
        stratified_sample(labels_of([5, 5, 5]), limit=2, seed=0, key=Key("max_train_images"))


@pytest.mark.parametrize(
    ("official", "sizes"),
    [
        (["train"], {"train": 112, "validation": 24, "devtest": 24, "test": 40}),
        (["train", "test"], {"train": 140, "validation": 30, "devtest": 30, "test": 200}),
        (["train", "validation"], {"train": 160, "validation": 200, "test": 40}),
        (["train", "validation", "test"], {"train": 200, "validation": 200, "test": 200}),
    ],
)
def test_the_rule_follows_from_the_official_parts(
    official: Sequence[str], sizes: dict[str, int]
) -> None:
    parts = {part: labels_of([100, 100]) for part in official}
    plan = plan_splits(parts, ("cat", "dog"), seed=0)
    assert {name: len(rows.indices) for name, rows in plan.items()} == sizes
    for name, rows in plan.items():
        assert rows.part == (name if name in official else "train")


def test_only_train_is_sampled() -> None:
    parts = {"train": labels_of([100, 100])}
    full = plan_splits(parts, ("cat", "dog"), seed=0)
    small = plan_splits(parts, ("cat", "dog"), seed=0, max_train_images=20)
    assert set(small["train"].indices) < set(full["train"].indices)
    assert len(small["train"].indices) == 20
    assert small["validation"].indices.tolist() == full["validation"].indices.tolist()


@pytest.mark.parametrize("official", [("train",), ("train", "validation", "test")])
def test_validation_is_sampled_wherever_it_comes_from(official: Sequence[str]) -> None:
    parts = {part: labels_of([90, 60]) for part in official}
    full = plan_splits(parts, ("cat", "dog"), seed=0)
    small = plan_splits(parts, ("cat", "dog"), seed=0, max_validation_images=10)
    chosen = small["validation"]
    assert set(chosen.indices) < set(full["validation"].indices)
    assert np.bincount(parts[chosen.part][chosen.indices]).tolist() == [6, 4]
    assert small["train"].indices.tolist() == full["train"].indices.tolist()


def test_an_empty_devtest_is_left_out() -> None:
    parts = {"train": labels_of([2, 2]), "test": labels_of([2, 2])}
    assert list(plan_splits(parts, ("cat", "dog"), seed=0)) == ["train", "validation", "test"]


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"train": [9, 1]}, "'dog' has 1 image in train, but cutting it into train 56 / val.* 3 "),
        ({"train": [9, 2]}, "'dog' has 2 images in train, but .* at least 3 of every class"),
        ({"train": [9, 1], "test": [5, 5]}, "'dog' has 1 image in train, but .* at least 2"),
        ({"train": [9, 0], "validation": [5, 5], "test": [5, 5]}, "'dog' has 0 images in train"),
        ({"train": [9, 9], "validation": [0, 5]}, "'cat' has 0 images in validation"),
        ({"train": [9, 9], "test": [0, 0]}, "part test holds no image"),
        ({"test": [9, 9]}, "parts found are test, .* name a part 'train'"),
    ],
)
def test_too_few_images_are_refused_by_name(parts: dict[str, list[int]], message: str) -> None:
    with pytest.raises(InputError, match=message):
        plan_splits({p: labels_of(c) for p, c in parts.items()}, ("cat", "dog"), seed=0)


def test_one_class_is_refused() -> None:
    with pytest.raises(InputError, match="only class is 'cat'"):
        plan_splits({"train": labels_of([20])}, ("cat",), seed=0)
