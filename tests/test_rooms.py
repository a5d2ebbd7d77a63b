"""The rooms of the house and the arrows between them, read from every file's imports.

`orchestrator` imports the other three; those import none of each other but three plain files. Heavy
libraries stay in their rooms, so that what needs no torch loads none.
"""

import ast
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.checkout import ROOT

ROOMS = ("analysis", "orchestrator", "search_spaces", "trainables")
SHARED_RECORDS = ("search_spaces.recipe", "trainables.measurement", "trainables.errors")
"""What every room may import."""
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
NAMELESS = {"utils", "util", "helpers", "common", "misc", "manager"}
"""A file is a noun with one purpose."""


@dataclass(frozen=True, kw_only=True)
class Import:
    """One imported name and where."""

    file: str
    """Relative to the root."""
    line: int
    name: str
    """Absolute dotted name, of a module or of something in it."""

    @property
    def place(self) -> str:
        return f"{self.file}:{self.line} imports {self.name}"


def sources(root: Path) -> list[Path]:
    """Every Python file of the rooms."""
    return sorted(path for room in ROOMS for path in (root / room).rglob("*.py"))


def imports_of(path: Path, root: Path) -> Iterator[Import]:
    """Every import of a file, those inside of functions and of type-checking blocks too."""
    file = path.relative_to(root)
    package = list(file.parent.parts)
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) + 1 - node.level] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            names = [f"{base}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "import_module":
            names = [arg.value for arg in node.args[:1] if isinstance(arg, ast.Constant)]
        for name in names:
            yield Import(file=file.as_posix(), line=node.lineno, name=name)


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


def _is_facade(node: ast.stmt, package: str) -> bool:
    if isinstance(node, ast.ImportFrom):
        return node.level == 1 or (node.module or "").startswith(f"{package}.")
    return isinstance(node, ast.Assign) and [ast.unparse(t) for t in node.targets] == ["__all__"]


def test_the_rooms_are_there() -> None:
    assert {path.relative_to(ROOT).parts[0] for path in sources(ROOT)} == set(ROOMS)


def test_imports_run_one_way() -> None:
    assert broken_rules(ROOT) == []


def test_facades_do_no_work() -> None:
    assert busy_facades(ROOT) == []


def test_files_say_what_they_are() -> None:
    assert [path for path in sources(ROOT) if path.stem in NAMELESS] == []


def test_every_file_begins_by_saying_what_it_is() -> None:
    silent = [
        path.relative_to(ROOT).as_posix()
        for path in sources(ROOT)
        if path.stat().st_size and not ast.get_docstring(ast.parse(path.read_text("utf-8")))
    ]
    assert silent == []


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
