"""The contract that every method must keep, whatever it does.

A new method is held to it as soon as it has a file in `examples/`, and it must have one.
"""

from dataclasses import replace
from math import nan
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from search_spaces.draws import check_space
from search_spaces.recipe import Recipe, Setting
from search_spaces.space import load_space
from tests.trainables.methods.example_runs import RunOf, assert_equal, comparable
from tests.trainables.methods.method_examples import (
    PROBLEM,
    MethodExample,
    backbone,
    examples_of,
    method_names,
    names_with_examples,
    trained_examples,
)
from tests.trainables.recipes import SMALL, make_trial, run, rung_uri
from trainables.backbones import build as backbones
from trainables.checkpoints import load_checkpoint
from trainables.costs.flops import count_flops
from trainables.errors import InfeasibleError, InputError
from trainables.finetune import Finetuning
from trainables.images.store import ImageStore
from trainables.method import Conditions, load_method

GROUPS = ("model", "measured", "optimizer", "transfer")
OF_ANOTHER_TYPE: dict[type, tuple[Setting, ...]] = {
    bool: (1, "yes"),
    int: (True, 0.5, "many"),
    float: (True, nan, "much"),
    str: (1, True, "no such choice"),
}
"""Values that no setting may have, by the type of those it has."""
METHODS = names_with_examples()
EVERY_METHOD = pytest.mark.parametrize("method", METHODS)
OFF = [(method, name) for method in METHODS for name in examples_of(method).off]
EVERY_EXAMPLE = pytest.mark.parametrize(("method", "name"), trained_examples())


def weightless() -> nn.Module:
    """A model with nothing below its head that could be masked, adapted or moved."""
    return nn.Sequential(nn.BatchNorm2d(3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 4))


def first_example(method: str) -> MethodExample:
    return next(iter(examples_of(method).trained.values()))


def first_trial(store: ImageStore, recipes: tuple[Recipe, ...], **options: Any) -> Finetuning:
    """A trial of the first recipe that can be realised."""
    for recipe in recipes:
        try:
            return make_trial(store, recipe, levels=(recipe.target_flops,), **options)
        except InfeasibleError:
            continue
    raise AssertionError(f"none of {len(recipes)} recipes can be realised")


def test_every_method_has_examples_and_every_example_its_method() -> None:
    assert method_names() == METHODS
    for method in METHODS:
        examples = examples_of(method)
        assert examples.trained
        for example in (*examples.trained.values(), *examples.off.values()):
            assert example.method == method


@EVERY_EXAMPLE
def test_a_resumed_run_is_the_run_itself(
    run_of: RunOf, tmp_path: Path, method: str, name: str
) -> None:
    """From every checkpoint of a trial its end is that of the trial left alone."""
    whole = run_of(method, name)
    assert len(whole.curve) > 2, "a trial with less than three rungs shows little"
    end, _ = load_checkpoint(whole.checkpoint(whole.curve[-1].rung), GROUPS)
    for number, measured in enumerate(whole.curve[:-1], start=1):
        resumed = whole.resumed(measured.rung)
        assert [comparable(m) for m in run(resumed)] == [
            comparable(m) for m in whole.curve[number:]
        ]
        uri = rung_uri(tmp_path, measured.rung)
        resumed.save(uri)
        tensors, _ = load_checkpoint(uri, GROUPS)
        for group in GROUPS:
            assert_equal(tensors[group], end[group])


@EVERY_EXAMPLE
def test_the_exported_model_is_the_one_that_was_measured(
    digits: ImageStore, run_of: RunOf, method: str, name: str
) -> None:
    """It has the backbone's structure, unless the method reshapes it, its cost and its error."""
    whole = run_of(method, name)
    recipe, measured, loaded = whole.example.recipe(), whole.curve[-1], whole.exported
    _, state = load_checkpoint(whole.checkpoint(measured.rung), ())
    plain = backbones.build(SMALL, num_classes=len(digits.class_names))
    load_method(method).reshape(plain, state["structure"], recipe)
    assert {n: v.shape for n, v in loaded.module.state_dict().items()} == {
        n: v.shape for n, v in plain.state_dict().items()
    }
    cost = count_flops(plain, resolution=recipe.resolution)
    assert measured.inference_flops == cost.forward_flops
    assert measured.params == sum(p.numel() for p in plain.parameters())
    split = digits.splits["validation"]
    wrong = loaded.module(loaded.inputs(split.images)).argmax(1) != split.labels
    assert abs(wrong.float().mean().item() - measured.val_error) < 1e-6


@pytest.mark.parametrize(("method", "name"), OFF)
def test_a_method_that_is_switched_off_is_plain_finetuning(
    digits: ImageStore, tmp_path: Path, method: str, name: str
) -> None:
    """Bit for bit and at the same cost, left alone and resumed."""
    off = examples_of(method).off[name]
    full = replace(off, method="full", settings={}).trial(digits)
    expected = [comparable(m) for m in run(full)]
    alone = off.trial(digits)
    assert [comparable(m) for m in run(alone, tmp_path)] == expected
    resumed = off.trial(digits, resume_from=rung_uri(tmp_path, alone.stops[0].rung))
    assert [comparable(m) for m in run(resumed)] == expected[1:]
    for trial in (alone, resumed):
        assert_equal(trial.measured_model.state_dict(), full.measured_model.state_dict())


@EVERY_METHOD
def test_every_recipe_of_its_space_is_sound_and_one_trains(
    digits: ImageStore, source: Any, method: str
) -> None:
    examples, example = examples_of(method), first_example(method)
    conditions = Conditions(model=backbone(example.weights), source_task=True)
    recipes = check_space(load_space(method), {}, PROBLEM).recipes
    for recipe in recipes:
        assert recipe.method == method
        load_method(method).check(recipe, conditions)
    small = (
        replace(recipe, batch_size=16, settings={**recipe.settings, **examples.smaller})
        for recipe in recipes[:8]
    )
    trial = first_trial(digits, tuple(small), weights=example.weights(), source_task=source)
    (measured,) = run(trial)
    assert measured.images_seen >= 2 * 16


@EVERY_EXAMPLE
def test_its_check_passes_the_examples(method: str, name: str) -> None:
    examples_of(method).trained[name].check()


@EVERY_METHOD
def test_an_unknown_setting_is_refused(method: str) -> None:
    example = first_example(method).but(settings={"no_such_setting": 1})
    with pytest.raises(InputError, match="^no_such_setting is no setting of the method, which has"):
        example.check()


@EVERY_METHOD
def test_a_missing_setting_is_named(method: str) -> None:
    example = first_example(method)
    for name in examples_of(method).needed:
        rest = {key: value for key, value in example.settings.items() if key != name}
        with pytest.raises(InputError, match=f"^{name} is missing; the method's settings are "):
            replace(example, settings=rest).check()


@EVERY_EXAMPLE
def test_settings_of_another_type_are_refused(method: str, name: str) -> None:
    example = examples_of(method).trained[name]
    for setting, value in example.settings.items():
        for wrong in OF_ANOTHER_TYPE[type(value)]:
            with pytest.raises(InputError, match=f"^{setting}={wrong!r} must be "):
                example.but(settings={setting: wrong}).check()


@EVERY_METHOD
def test_a_depth_that_is_another_methods_is_refused(method: str) -> None:
    for depth in examples_of(method).refused_depths:
        with pytest.raises(InputError, match=f"^{method} with trainable_depth={depth:g} must "):
            first_example(method).but(trainable_depth=depth).check()


@EVERY_METHOD
def test_a_model_without_weights_is_refused_where_they_are_needed(method: str) -> None:
    if not examples_of(method).needs_weights:
        return
    with pytest.raises(InputError, match="Sequential has no"):
        first_example(method).check(weightless())
