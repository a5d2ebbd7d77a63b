"""RigL: connections move, and their number in each layer never does."""

from math import cos, floor, pi
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from search_spaces.recipe import Recipe
from tests.trainables.mechanisms.sparse_models import (
    OPTIMIZERS,
    PARAMS,
    WEIGHTS,
    drawn_recipes,
    steps,
    zeros,
)
from tests.trainables.methods.method_contract import (
    assert_exports,
    assert_plain_finetuning,
    assert_resumes,
    check,
    pretrained,
)
from tests.trainables.recipes import LEVELS, make_recipe, make_trial, run
from trainables.backbones.layers import backbone_weights
from trainables.backbones.source import BackboneSource
from trainables.errors import InputError
from trainables.finetune import Finetuning
from trainables.images.store import ImageStore
from trainables.mechanisms.masks import MaskedTransfer
from trainables.methods.rigl import RigL
from trainables.rungs import rung_levels

SETTINGS: dict[str, Any] = {"sparsity": 0.8, "update_fraction": 0.4, "updates": 4}
ASKED = round(0.8 * WEIGHTS)
LATER = rung_levels(min_flops=5e8, max_flops=1e9, per_decade=10)


def recipe_of(**changes: Any) -> Recipe:
    values = {"settings": SETTINGS, "target_flops": LATER[-1], "learning_rate": 0.05, **changes}
    return make_recipe(method="rigl", **values)


def trial_of(store: ImageStore, **changes: Any) -> Finetuning:
    return make_trial(store, recipe_of(**changes), weights=pretrained(), levels=LATER)


def masks_of(trial: Finetuning) -> dict[str, Tensor]:
    transfer = trial.transfer
    assert isinstance(transfer, MaskedTransfer)
    return {name: mask.clone() for name, mask in transfer.masks.items()}


def free(masks: dict[str, Tensor]) -> dict[str, int]:
    return {name: int(mask.count_nonzero()) for name, mask in masks.items()}


@pytest.mark.parametrize("changes", OPTIMIZERS, ids=lambda changes: changes["optimizer"])
@pytest.mark.parametrize("distribution", ["erk", "uniform"])
def test_connections_move_and_their_number_stays(
    digits: ImageStore, distribution: str, changes: dict[str, Any]
) -> None:
    settings = {**SETTINGS, "distribution": distribution}
    trial = trial_of(digits, settings=settings, **changes)
    masks = masks_of(trial)
    number, updates = free(masks), 0
    assert sum(number.values()) == WEIGHTS - ASKED
    for _, model in steps(trial):
        weights, before, masks = backbone_weights(model), masks, masks_of(trial)
        assert free(masks) == number
        for name, mask in masks.items():
            assert not weights[name][~mask].any()
            assert not weights[name][mask & ~before[name]].any(), "what is grown starts at zero"
        updates += any(not torch.equal(mask, before[name]) for name, mask in masks.items())
    assert updates == SETTINGS["updates"]


@pytest.mark.parametrize("changes", OPTIMIZERS, ids=lambda changes: changes["optimizer"])
def test_what_is_grown_learns_in_the_steps_that_follow(
    digits: ImageStore, changes: dict[str, Any]
) -> None:
    trial = trial_of(digits, **changes)
    masks, grown = masks_of(trial), {}
    for _, model in steps(trial):
        weights = backbone_weights(model)
        for name, new in grown.items():
            assert weights[name][new].count_nonzero() > 0.9 * int(new.sum())
        before, masks = masks, masks_of(trial)
        grown = {name: mask & ~before[name] for name, mask in masks.items()}
        grown = {name: new for name, new in grown.items() if new.any()}


def test_the_share_that_moves_decays_on_a_cosine(digits: ImageStore) -> None:
    trial = trial_of(digits)
    transfer = trial.transfer
    assert isinstance(transfer, RigL)
    end = floor(0.75 * trial.stops[-1].steps)
    number = free(masks_of(trial))
    room = {name: mask.numel() - number[name] for name, mask in transfer.masks.items()}
    updates = {}
    for step, _ in steps(trial):
        share = 0.4 / 2 * (1 + cos(pi * step / end))
        for name, grown in transfer._grown.items():
            assert int(grown.sum()) == min(floor(share * number[name]), room[name])
            updates[step] = share
    assert 0 < min(updates) < max(updates) < end
    assert len(updates) == SETTINGS["updates"]
    assert list(updates.values()) == sorted(updates.values(), reverse=True)


def test_it_drops_the_smallest_weights_and_grows_where_gradients_are_largest(
    digits: ImageStore,
) -> None:
    trial = trial_of(digits)
    transfer = trial.transfer
    assert isinstance(transfer, RigL)
    masks = masks_of(trial)
    draws = torch.Generator().manual_seed(0)
    gradients = {n: torch.randn(w.shape, generator=draws) for n, w in transfer.weights.items()}
    magnitudes = {name: w.detach().abs().clone() for name, w in transfer.weights.items()}
    for name, weight in transfer.weights.items():
        weight.grad = gradients[name].clone()
    step = next(s for s in range(1, 100) if transfer._fraction(s, 100) > 0)
    transfer.before_step(step=step, total_steps=100)
    for name, now in transfer.masks.items():
        dropped, grown = masks[name] & ~now, now & ~masks[name]
        kept = masks[name] & now
        if not grown.any():
            continue
        # a few of the smallest have a large gradient, and grow again
        assert magnitudes[name][dropped].max() <= magnitudes[name][kept].quantile(0.6)
        assert gradients[name][grown].abs().min() >= gradients[name][~now].abs().max()
        weight = transfer.weights[name]
        assert weight.grad is not None
        assert not weight.grad[~kept].any()
        assert weight.grad.count_nonzero() > 0.5 * int(kept.sum())


def test_small_layers_are_denser_by_erdos_renyi_kernel(digits: ImageStore) -> None:
    for distribution, spread in (("erk", 0.5), ("uniform", 0.01)):
        masks = masks_of(trial_of(digits, settings={**SETTINGS, "distribution": distribution}))
        densities = [float(mask.float().mean()) for mask in masks.values()]
        assert (max(densities) - min(densities) > spread) is (distribution == "erk")


@pytest.mark.parametrize("changes", OPTIMIZERS, ids=lambda changes: changes["optimizer"])
def test_a_resumed_run_is_the_run_itself(
    digits: ImageStore, tmp_path: Path, changes: dict[str, Any]
) -> None:
    assert_resumes(digits, recipe_of(**changes), tmp_path, weights=pretrained(), levels=LATER)


def test_every_rung_and_the_export_have_the_masks_of_now(
    digits: ImageStore, tmp_path: Path
) -> None:
    trial = trial_of(digits)
    for _ in trial.stops:
        trial.advance()
        weights = backbone_weights(trial.measured_model)
        assert not any(weights[n][~mask].any() for n, mask in masks_of(trial).items())
        assert trial.measurement is not None
        assert trial.measurement.updated_params == PARAMS - ASKED
    recipe = recipe_of(target_flops=LEVELS[-1])
    assert zeros(assert_exports(digits, recipe, tmp_path, weights=pretrained())) == ASKED


def test_no_sparsity_is_plain_finetuning(digits: ImageStore) -> None:
    assert_plain_finetuning(digits, recipe_of(settings={**SETTINGS, "sparsity": 0.0}))


def test_a_fraction_of_zero_moves_nothing(digits: ImageStore) -> None:
    trial = trial_of(digits, settings={**SETTINGS, "update_fraction": 0.0})
    first = masks_of(trial)
    curve = run(trial)
    assert all(torch.equal(mask, first[name]) for name, mask in masks_of(trial).items())
    moving = run(trial_of(digits))
    assert [m.train_flops for m in curve] == [m.train_flops for m in moving], "moving costs nothing"
    assert curve[-1].val_loss != moving[-1].val_loss
    assert moving[-1].sparse_train_flops < 0.5 * moving[-1].train_flops


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({}, "sparsity is missing"),
        ({"sparsity": 1.0}, "sparsity=1.0 must be less than 1"),
        ({"sparsity": 0.99999}, "leaves 4 of 370608 values to 15 layers"),
        ({"sparsity": 0.5, "distribution": "random"}, "must be 'erk' or 'uniform'"),
        ({"sparsity": 0.5, "update_fraction": 1.5}, "update_fraction=1.5 must be less than or"),
        ({"sparsity": 0.5, "updates": 0}, "updates=0 must be greater than or equal to 1"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings: dict[str, Any], complaint: str) -> None:
    with pytest.raises(InputError, match=complaint):
        check(recipe_of(settings=settings))


def test_frozen_layers_and_a_model_without_weights_are_refused() -> None:
    with pytest.raises(InputError, match="rigl with trainable_depth=0 must be 1; connections"):
        check(recipe_of(trainable_depth=0.0))
    source = BackboneSource(model="tests.trainables.mechanisms.sparse_models:weightless")
    with pytest.raises(InputError, match="Sequential has no convolution or linear layer below"):
        check(recipe_of(), source=source)


def test_its_space_draws_recipes_that_train(digits: ImageStore) -> None:
    recipe = drawn_recipes("rigl")[0]
    trial = make_trial(digits, recipe, levels=(recipe.target_flops,))
    (measured,) = run(trial)
    assert measured.images_seen >= 2 * recipe.batch_size
    assert sum(free(masks_of(trial)).values()) == measured.updated_params - PARAMS + WEIGHTS
