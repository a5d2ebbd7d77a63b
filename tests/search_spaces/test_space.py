"""Spaces are found by name, and a wrong name gets one sentence."""

from importlib import import_module
from pathlib import Path

import pytest

from search_spaces.methods.filter_pruning import filter_pruning
from search_spaces.space import InvalidSpaceError, load_space


def test_a_built_in_is_its_files_namesake() -> None:
    assert load_space("filter_pruning") is filter_pruning


def test_a_users_function_is_loaded_from_its_module(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "my_spaces_of_test.py").write_text("def narrow(trial, problem):\n    return 42\n")
    monkeypatch.syspath_prepend(tmp_path)
    space = load_space("my_spaces_of_test:narrow")
    assert space is import_module("my_spaces_of_test").narrow


@pytest.mark.parametrize(
    ("name", "complaint"),
    [
        ("filter_prunning", "does not exist; name a built-in .*filter_pruning"),
        ("recipe", "does not exist; name a built-in .*filter_pruning"),
        ("", "does not exist; name a built-in"),
        ("search_spaces.methods.filter_pruning", "does not exist; name a built-in"),
        ("no_such_module_here:narrow", "cannot be imported .ModuleNotFoundError.*PYTHONPATH"),
        ("json:narrow", "must be a function, but json has no function 'narrow'"),
        ("json:__doc__", "must be a function"),
        (":narrow", "must read module:function"),
        ("json:", "must read module:function"),
    ],
)
def test_a_wrong_name_gets_one_sentence(name: str, complaint: str) -> None:
    with pytest.raises(InvalidSpaceError, match=complaint) as caught:
        load_space(name)
    assert str(caught.value).startswith(f"search space {name!r}")
    assert "\n" not in str(caught.value)


def test_a_module_that_raises_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "broken_space_of_test.py").write_text("1 / 0\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(InvalidSpaceError, match="ZeroDivisionError: division by zero"):
        load_space("broken_space_of_test:narrow")


def test_only_spaces_are_offered() -> None:
    with pytest.raises(InvalidSpaceError) as caught:
        load_space("nonsense")
    offered = str(caught.value).split("(")[1].split(")")[0].split(", ")
    assert "filter_pruning" in offered
    assert not {"draws", "ranges", "recipe", "problem", "space"} & set(offered)
