"""AC/DC: compressed and decompressed by turns, as scheduled, and compressed in the end."""

from itertools import groupby
from pathlib import Path
from typing import Any

import pytest
import torch

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
from tests.trainables.recipes import make_recipe, make_trial, run
from trainables.backbones.layers import backbone_weights
from trainables.backbones.source import BackboneSource
from trainables.errors import InputError
from trainables.finetune import Finetuning
from trainables.images.store import ImageStore
from trainables.rungs import rung_levels

SETTINGS: dict[str, Any] = {"sparsity": 0.9, "cycles": 2, "warm_up": 0.2, "finish": 0.3}
ASKED = round(0.9 * WEIGHTS)
LATER = rung_levels(min_flops=5e8, max_flops=1.2e9, per_decade=10)
"""Rungs in the first compressed phase, the second, and the last."""


def recipe_of(**changes: Any) -> Recipe:
    values = {"settings": SETTINGS, "target_flops": LATER[-1], **changes}
    return make_recipe(method="ac_dc", **values)


def trial_of(store: ImageStore, *, levels: tuple[float, ...] = LATER, **changes: Any) -> Finetuning:
    recipe = recipe_of(**{"target_flops": levels[-1], **changes})
    return make_trial(store, recipe, weights=pretrained(), levels=levels)


def phases_of(trial: Finetuning) -> list[tuple[bool, int]]:
    """Whether each phase was compressed, and its steps."""
    sparse = [zeros(model) == ASKED for _, model in steps(trial)]
    return [(compressed, len(list(run))) for compressed, run in groupby(sparse)]


@pytest.mark.parametrize("changes", OPTIMIZERS, ids=lambda changes: changes["optimizer"])
@pytest.mark.parametrize("scope", ["layer", "global"])
def test_phases_are_as_scheduled_and_the_last_is_compressed(
    digits: ImageStore, scope: str, changes: dict[str, Any]
) -> None:
    trial = trial_of(digits, settings={**SETTINGS, "scope": scope}, **changes)
    total = trial.stops[-1].steps
    phases = phases_of(trial)
    assert [compressed for compressed, _ in phases] == [False, True, False, True, False, True]
    shares = [0.2, 0.125, 0.125, 0.125, 0.125, 0.3]
    assert all(
        abs(taken - share * total) <= 1 for (_, taken), share in zip(phases, shares, strict=True)
    )


def test_more_phases_than_steps_still_end_compressed(digits: ImageStore) -> None:
    settings = {"sparsity": 0.9, "cycles": 50, "warm_up": 0.1, "finish": 0.01}
    phases = phases_of(trial_of(digits, settings=settings, levels=(3e8,)))
    assert phases[-1] == (True, 1)
    assert len(phases) > 1
    once = {"sparsity": 0.9, "cycles": 1, "warm_up": 0.0, "finish": 0.2}
    assert phases_of(trial_of(digits, settings=once, levels=(1e8,))) == [(True, 1)]


def test_a_dense_phase_trains_what_was_held_from_zero(digits: ImageStore) -> None:
    trial = trial_of(digits)
    held, seen = {}, 0
    for _, model in steps(trial):
        weights = backbone_weights(model)
        sparse = zeros(model) == ASKED
        if held and not sparse:  # the first step of a dense phase
            for name, mask in held.items():
                typical = weights[name][~mask].abs().mean()
                assert 0 < weights[name][mask].abs().mean() < 0.2 * typical
            seen += 1
        held = {name: weight == 0 for name, weight in weights.items()} if sparse else {}
    assert seen == 2


def test_a_compressed_phase_keeps_the_largest_at_its_start(digits: ImageStore) -> None:
    trial = trial_of(digits, settings={**SETTINGS, "scope": "global"})
    before: dict[str, torch.Tensor] = {}
    for _, model in steps(trial):
        weights = {name: w.detach().clone() for name, w in backbone_weights(model).items()}
        if before and zeros(model) == ASKED:
            kept = torch.cat([before[name][weights[name] != 0] for name in weights]).abs()
            gone = torch.cat([before[name][weights[name] == 0] for name in weights]).abs()
            assert kept.min() >= gone.max() - 1e-6
            break
        before = weights
    assert len(kept) == WEIGHTS - ASKED


@pytest.mark.parametrize("changes", OPTIMIZERS, ids=lambda changes: changes["optimizer"])
def test_a_resumed_run_is_the_run_itself(
    digits: ImageStore, tmp_path: Path, changes: dict[str, Any]
) -> None:
    assert_resumes(digits, recipe_of(**changes), tmp_path, weights=pretrained(), levels=LATER)


@pytest.mark.parametrize("changes", OPTIMIZERS, ids=lambda changes: changes["optimizer"])
def test_every_rung_measures_a_model_as_sparse_as_asked(
    digits: ImageStore, changes: dict[str, Any]
) -> None:
    levels = rung_levels(min_flops=1.5e8, max_flops=1.2e9, per_decade=10)
    trial = trial_of(digits, levels=levels, **changes)
    states = set()
    for _ in trial.stops:
        trial.advance()
        assert zeros(trial.measured_model) == ASKED
        assert trial.measurement is not None
        assert trial.measurement.updated_params == PARAMS - ASKED
        states.add(zeros(trial.model) == ASKED)
    assert states == {False, True}, "rungs in dense phases and in compressed ones"


def test_the_exported_backbone_is_as_sparse_as_asked(digits: ImageStore, tmp_path: Path) -> None:
    recipe = recipe_of(target_flops=8e8)
    assert zeros(assert_exports(digits, recipe, tmp_path, weights=pretrained())) == ASKED


def test_no_sparsity_is_plain_finetuning(digits: ImageStore) -> None:
    assert_plain_finetuning(digits, recipe_of(settings={**SETTINGS, "sparsity": 0.0}))


def test_compressed_steps_alone_could_skip_their_zeros(digits: ImageStore) -> None:
    measured = run(trial_of(digits, levels=(1.2e9,)))[-1]
    saved = 1 - measured.sparse_train_flops / measured.train_flops
    assert 0.35 < saved < 0.55, "0.9 of somewhat more than half of the steps"


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({}, "sparsity is missing"),
        ({"sparsity": 1}, "sparsity=1 must be less than 1"),
        ({"sparsity": 0.99999}, "leaves 4 of 370608 values to 15 layers"),
        ({"sparsity": 0.5, "scope": "row"}, "scope='row' must be 'layer' or 'global'"),
        ({"sparsity": 0.5, "cycles": 0}, "cycles=0 must be greater than or equal to 1"),
        ({"sparsity": 0.5, "warm_up": 0.7, "finish": 0.5}, "must add up to at most 1"),
        ({"sparsity": 0.5, "finish": 0.0}, "finish=0.0 must be greater than 0"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings: dict[str, Any], complaint: str) -> None:
    with pytest.raises(InputError, match=complaint):
        check(recipe_of(settings=settings))


def test_frozen_layers_and_a_model_without_weights_are_refused() -> None:
    with pytest.raises(InputError, match="ac_dc with trainable_depth=0.5 must be 1; decompressed"):
        check(recipe_of(trainable_depth=0.5))
    source = BackboneSource(model="tests.trainables.mechanisms.sparse_models:weightless")
    with pytest.raises(InputError, match="Sequential has no convolution or linear layer below"):
        check(recipe_of(), source=source)


def test_its_space_draws_recipes_that_train(digits: ImageStore) -> None:
    recipe = drawn_recipes("ac_dc")[0]
    trial = make_trial(digits, recipe, levels=(recipe.target_flops,))
    (measured,) = run(trial)
    assert measured.images_seen >= 2 * recipe.batch_size
    assert zeros(trial.measured_model) == round(float(recipe.settings["sparsity"]) * WEIGHTS)
