"""Methods are found by name, and a module may leave out the functions it does not need."""

from copy import deepcopy
from pathlib import Path

import pytest
import torch

import trainables.methods
from tests.trainables.contexts import make_context
from tests.trainables.methods.method_examples import method_names
from tests.trainables.recipes import SMALL, make_recipe
from trainables.backbones import build as backbones
from trainables.errors import InputError
from trainables.method import load_method


@pytest.mark.parametrize("name", ["prunning", "", "..errors", "__init__"])
def test_an_unknown_method_is_refused_with_those_there_are(name: str) -> None:
    known = ", ".join(method_names())
    with pytest.raises(InputError, match=f"is not known; the methods are {known}"):
        load_method(name)


def test_a_method_that_neither_prepares_nor_reshapes_leaves_the_model_as_it_is() -> None:
    method = load_method("full")
    model = backbones.build(SMALL, num_classes=4)
    before = deepcopy(model.state_dict())
    prepared = method.prepare(model, make_context(model, {}))
    assert (prepared.flops, prepared.structure, prepared.tensors) == (0.0, {}, {})
    method.reshape(model, prepared.structure, make_recipe(method="full", settings={}))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_method_without_a_function_that_every_method_has_is_no_method(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "half_a_method.py").write_text("def check(recipe, conditions): ...\n")
    monkeypatch.setattr(trainables.methods, "__path__", [str(tmp_path)])
    with pytest.raises(TypeError, match="missing 1 required keyword-only argument: 'transfer'"):
        load_method("half_a_method")
