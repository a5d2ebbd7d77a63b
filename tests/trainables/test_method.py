"""Methods are found by name, and every one offers the same functions."""

import pkgutil

import pytest

import trainables.methods
from tests.trainables.methods.method_contract import check
from tests.trainables.recipes import make_recipe
from trainables.errors import InputError
from trainables.method import load_method

NAMES = [module.name for module in pkgutil.iter_modules(trainables.methods.__path__)]


@pytest.mark.parametrize("name", NAMES)
def test_every_file_of_the_folder_is_a_method(name: str) -> None:
    method = load_method(name)
    assert callable(method.check)
    assert callable(method.prepare)
    assert callable(method.rebuild)
    with pytest.raises(InputError):
        check(make_recipe(method=name, settings={"no such setting": 1}))


@pytest.mark.parametrize("name", ["prunning", "", "..errors", "__init__"])
def test_an_unknown_method_is_refused_with_those_there_are(name: str) -> None:
    with pytest.raises(InputError, match=f"is not known; the methods are {', '.join(NAMES)}"):
        load_method(name)
