"""The rooms of the house and the arrows between them, read from every file's imports.

`orchestrator` imports the other three; those import none of each other but three plain files. Heavy
libraries stay in their rooms, so that what needs no torch loads none.
"""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.checkout import ROOT
from tests.import_graph import (
    ROOMS,
    both_ways,
    circles,
    file_arrows,
    folder_arrows,
    imports_of,
    report,
    sources,
)

SHARED_RECORDS = ("search_spaces.recipe", "trainables.measurement", "trainables.errors")
"""Files of plain records that every room may import."""
NEVER = {
    "analysis": {"torch", "torchvision", "timm", "torch_pruning", "ray", "mlflow"},
    "search_spaces": {"torch", "torchvision", "timm", "torch_pruning", "ray", "mlflow"},
    "trainables": {"optuna", "mlflow", "ray", "torch_pruning"},
    "orchestrator": {"torch_pruning"},
}
"""Libraries that no file of a room imports, but for these."""
ONLY_IN = {"trainables/trial.py": {"ray"}}
UNSAFE = {"pickle", "cloudpickle", "dill", "shelve"}
"""Nothing is unpickled from disk."""
FRAGMENT = re.compile(r"(Of|Those|What|As|Whose)\b")
"""The beginning of a docstring that is no full sentence."""
NAMELESS = {"utils", "util", "helpers", "common", "misc", "manager"}
"""A file is a noun with one purpose."""


def broken_rules(root: Path) -> list[str]:
    """Each import under `root` that breaks a rule, with its place."""
    broken = []
    for path in sources(root):
        for found in imports_of(path, root):
            room = Path(found.file).parts[0]
            library = found.name.partition(".")[0]
            crosses = library in ROOMS and library != room and room != "orchestrator"
            shared = any(f"{found.name}.".startswith(f"{record}.") for record in SHARED_RECORDS)
            heavy = library in NEVER[room] - ONLY_IN.get(found.file, set())
            if heavy or library in UNSAFE or library == "tests" or (crosses and not shared):
                broken.append(found.place)
    return broken


def busy_facades(root: Path) -> list[str]:
    """Each `__init__.py` that does more than import names of its own package and list them."""
    busy = []
    for path in sources(root):
        if path.name != "__init__.py":
            continue
        package = ".".join(path.relative_to(root).parent.parts)
        body = ast.parse(path.read_text(encoding="utf-8")).body
        if body and isinstance(body[0], ast.Expr) and isinstance(body[0].value, ast.Constant):
            body = body[1:]
        if not all(_is_facade(node, package) for node in body):
            busy.append(path.relative_to(root).as_posix())
    return busy


def silent_files(root: Path) -> list[str]:
    """Each file without a docstring; facades need one too."""
    return [
        path.relative_to(root).as_posix()
        for path in sources(root)
        if not ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
    ]


def fragments(root: Path) -> list[str]:
    """Each docstring, also of a field, that only says something with the line above it."""
    found = []
    for path in sources(root):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
                text = str(node.value.value).lstrip()
                if FRAGMENT.match(text):
                    found.append(f"{path.relative_to(root).as_posix()}:{node.lineno} {text[:40]}")
    return found


def _is_facade(node: ast.stmt, package: str) -> bool:
    if isinstance(node, ast.ImportFrom):
        return node.level == 1 or (node.module or "").startswith(f"{package}.")
    return isinstance(node, ast.Assign) and [ast.unparse(t) for t in node.targets] == ["__all__"]


def test_the_rooms_are_there() -> None:
    assert {path.relative_to(ROOT).parts[0] for path in sources(ROOT)} == set(ROOMS)


def test_imports_run_one_way() -> None:
    assert broken_rules(ROOT) == []


def test_no_files_import_one_another_in_a_circle() -> None:
    assert circles(file_arrows(ROOT)) == []


def test_no_folder_imports_another_both_ways() -> None:
    folders = folder_arrows(file_arrows(ROOT))
    assert both_ways(folders) == []
    assert circles(folders) == []


def test_facades_do_no_work() -> None:
    assert busy_facades(ROOT) == []


def test_files_say_what_they_are() -> None:
    assert [path for path in sources(ROOT) if path.stem in NAMELESS] == []


def test_every_file_begins_by_saying_what_it_is() -> None:
    assert silent_files(ROOT) == []


def test_docstrings_begin_as_sentences_do() -> None:
    assert fragments(ROOT) == []


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ('"""Of guessing, 0-1."""', True),
        ('class A:\n    b: int\n    """As in `c`."""', True),
        ('def f():\n    """Whose turn it is."""', True),
        ('"""Offers a recipe."""', False),
        ('def f():\n    """The error of guessing."""', False),
    ],
)
def test_a_fragment_is_found(tmp_path: Path, text: str, found: bool) -> None:
    write(tmp_path, {"analysis/file.py": text})
    assert bool(fragments(tmp_path)) is found


def test_every_folder_says_what_lives_in_it() -> None:
    folders = {path.parent for path in sources(ROOT)}
    assert [folder for folder in folders if not (folder / "__init__.py").is_file()] == []


@pytest.mark.parametrize(
    ("module", "unloaded"),
    [
        ("search_spaces.recipe", {"torch", "ray", "mlflow", "optuna", "numpy", "pyarrow"}),
        ("trainables.measurement", {"torch", "ray", "mlflow", "optuna", "numpy", "pyarrow"}),
        ("trainables.errors", {"torch", "ray", "mlflow", "optuna", "numpy", "pyarrow"}),
        ("search_spaces.methods.filter_pruning", {"torch", "ray", "mlflow", "timm"}),
        ("search_spaces.draws", {"torch", "ray", "mlflow", "timm"}),
        ("analysis.report", {"torch", "ray", "mlflow", "timm"}),
        ("orchestrator.cli", {"torch", "ray", "mlflow", "timm"}),
        ("trainables.finetune", {"ray", "mlflow", "optuna"}),
    ],
)
def test_a_fresh_interpreter_loads_nothing_that_is_not_needed(
    module: str, unloaded: set[str]
) -> None:
    code = f"import sys, {module}; print(*sorted({unloaded!r} & set(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == []


FAULTS = {
    "search_spaces/torchy.py": "import torch.nn",
    "search_spaces/lazy.py": "def draw():\n    from ray import tune",
    "search_spaces/curious.py": "from trainables.rungs import rung_levels",
    "analysis/checked.py": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import torch",
    "analysis/nosy.py": "from search_spaces import space",
    "analysis/hidden.py": "import importlib\nimportlib.import_module('ray.tune')",
    "trainables/second.py": "from ray import tune",
    "trainables/pruning/channels/engine.py": "import torch_pruning as tp",
    "trainables/study.py": "import optuna",
    "trainables/upwards.py": "from orchestrator.config import SweepConfig",
    "trainables/testing.py": "from tests.trainables import recipes",
    "orchestrator/loader.py": "import pickle",
    "orchestrator/prune.py": "from torch_pruning import DependencyGraph",
}
FINE = {
    "search_spaces/records.py": "from trainables.measurement import Measurement",
    "search_spaces/errors.py": "from trainables.errors import UserError",
    "analysis/records.py": "from search_spaces.recipe import Recipe\nimport search_spaces.recipe",
    "trainables/trial.py": "from ray import tune",
    "trainables/pruning/near.py": "from .engine import find\nfrom ..errors import InputError",
    "orchestrator/sweep.py": "import ray, optuna, mlflow\nfrom trainables.trial import T",
    "analysis/torchlike.py": "import torch_like_name",
}


def write(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)


def test_every_broken_rule_is_found_and_nothing_else(tmp_path: Path) -> None:
    write(tmp_path, FAULTS | FINE)
    broken = {place.partition(":")[0] for place in broken_rules(tmp_path)}
    assert broken == set(FAULTS)


@pytest.mark.parametrize(
    ("text", "busy"),
    [
        ("", False),
        ('"""Rooms."""\nfrom analysis.frontier import Frontier\n__all__ = ["Frontier"]', False),
        ("from .frontier import Frontier", False),
        ("import logging\nlogging.basicConfig()", True),
        ("from os import environ", True),
        ("HOME = 1", True),
        ("from .frontier import read\nread()", True),
    ],
)
def test_a_busy_facade_is_found(tmp_path: Path, text: str, busy: bool) -> None:
    write(tmp_path, {"analysis/__init__.py": text})
    assert bool(busy_facades(tmp_path)) == busy


def test_a_silent_file_is_found(tmp_path: Path) -> None:
    said = {"analysis/__init__.py": '"""Tables."""', "analysis/table.py": '"""A table."""'}
    write(tmp_path, said | {"trainables/__init__.py": "", "trainables/trial.py": "# a trial"})
    assert silent_files(tmp_path) == ["trainables/__init__.py", "trainables/trial.py"]


LAZY = "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from analysis import {}"


@pytest.mark.parametrize(
    ("files", "circle"),
    [
        ({"a": "import analysis.b", "b": "from analysis import a"}, ["a", "b"]),
        ({"a": "from .b import x", "b": "from . import a"}, ["a", "b"]),
        ({"a": "import analysis.b", "b": "def f():\n    import analysis.a"}, ["a", "b"]),
        ({"a": LAZY.format("b"), "b": "import analysis.a"}, ["a", "b"]),
        (
            {"a": "import analysis.b", "b": "import analysis.c", "c": "import analysis.a"},
            ["a", "b", "c"],
        ),
        ({"a": "import analysis", "__init__": "from analysis.a import x"}, ["__init__", "a"]),
        ({"a": "import analysis.b\nimport analysis.c", "b": "import analysis.c", "c": ""}, None),
        ({"a": "import a", "b": "from other.analysis import a"}, None),
    ],
)
def test_a_circle_of_files_is_found(
    tmp_path: Path, files: dict[str, str], circle: list[str] | None
) -> None:
    write(tmp_path, {f"analysis/{name}.py": text for name, text in files.items()})
    expected = [[f"analysis/{name}.py" for name in circle]] if circle else []
    assert circles(file_arrows(tmp_path)) == expected


@pytest.mark.parametrize(
    ("files", "pairs"),
    [
        (
            {
                "trainables/one/a.py": "import trainables.two.b",
                "trainables/two/b.py": "",
                "trainables/two/c.py": "from trainables.one.d import x",
                "trainables/one/d.py": "",
            },
            [("trainables/one", "trainables/two")],
        ),
        (
            {
                "trainables/one/a.py": "import trainables.one.in_it.b",
                "trainables/one/in_it/b.py": "",
                "trainables/one/in_it/c.py": "from trainables.one.d import x",
                "trainables/one/d.py": "",
            },
            [("trainables/one", "trainables/one/in_it")],
        ),
        (
            {
                "trainables/a.py": "import trainables.one.b",
                "trainables/one/b.py": "",
                "trainables/one/c.py": "from trainables import a",
            },
            [("trainables/a.py", "trainables/one")],
        ),
        (  # files of a room are no folder together
            {
                "trainables/a.py": "import trainables.one.b",
                "trainables/one/b.py": "import trainables.c",
                "trainables/c.py": "",
            },
            [],
        ),
        (  # a loader lists the folder whose files import it
            {
                "trainables/a.py": "from trainables import one",
                "trainables/one/__init__.py": '"""One."""',
                "trainables/one/b.py": "import trainables.a",
            },
            [],
        ),
    ],
)
def test_folders_that_import_each_other_are_found(
    tmp_path: Path, files: dict[str, str], pairs: list[tuple[str, str]]
) -> None:
    write(tmp_path, files)
    assert both_ways(folder_arrows(file_arrows(tmp_path))) == pairs
    assert circles(file_arrows(tmp_path)) == []


def test_the_graph_is_told_in_numbers_and_circles(tmp_path: Path) -> None:
    write(
        tmp_path,
        {
            "analysis/table.py": "import search_spaces.methods.full",
            "search_spaces/methods/full.py": "import search_spaces.space",
            "search_spaces/space.py": "import search_spaces.methods.full",
        },
    )
    told = report(tmp_path).splitlines()
    assert told[-6:] == [
        "circles among files: 1",
        "  search_spaces/methods/full.py ⇄ search_spaces/space.py",
        "circles among folders: 1",
        "  search_spaces/methods ⇄ search_spaces/space.py",
        "folders that import each other: 1",
        "  search_spaces/methods ⇄ search_spaces/space.py",
    ]
    assert told[-7].split() == ["all", "rooms", "3", "3", "3", "3"]
