"""The wheel holds every module and data file of the rooms, wherever the checkout lies.

An editable install finds what a wheel would lack, so a wheel is built, installed into an empty
folder and imported from there by an interpreter of its own.
"""

import json
import shutil
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import pytest

from tests.checkout import ROOT
from tests.import_graph import ROOMS, sources

IMPORTS = """
import importlib, json, sys
from pathlib import Path

sys.path.insert(0, sys.argv[1])
faults = {}
for name in sys.argv[2:]:
    try:
        file = importlib.import_module(name).__file__
        if not Path(file).is_relative_to(sys.argv[1]):
            faults[name] = f"was found at {file}"
    except ImportError as error:
        faults[name] = str(error)
print(json.dumps(faults))
"""
"""Imports modules from a folder and prints those that are not there, with what is said of them."""


def installed(tree: Path, folder: Path) -> Path:
    """The folder into which the wheel of the source tree `tree` was installed."""
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    build = ["wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(folder), str(tree)]
    subprocess.run([*pip, *build], cwd=folder, check=True)
    (wheel,) = folder.glob("*.whl")
    site = folder / "site"
    install = ["install", "--no-deps", "--no-index", "--target", str(site), str(wheel)]
    subprocess.run([*pip, *install], cwd=folder, check=True)
    return site


def source_tree(folder: Path) -> Path:
    """A copy of the rooms and of what a build needs, because builds leave files where they run."""
    for room in ROOMS:
        shutil.copytree(ROOT / room, folder / room, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    return folder


def module_names() -> list[str]:
    """Every module of the rooms, as the checkout has them."""
    files = [path.relative_to(ROOT).with_suffix("") for path in sources(ROOT)]
    dotted = (".".join(file.parts).removesuffix(".__init__") for file in files)
    return sorted(name for name in dotted if not name.endswith("__main__"))


def data_files() -> list[str]:
    """Every file of the rooms that the code reads; notes and their pictures are for people."""
    found = (path for room in ROOMS for path in (ROOT / room).rglob("*") if path.is_file())
    read = (path for path in found if path.suffix not in (".py", ".pyc", ".md", ".png"))
    return sorted(path.relative_to(ROOT).as_posix() for path in read)


def faults(site: Path, names: Iterable[str]) -> dict[str, str]:
    """The modules that cannot be imported from `site`, each with the reason."""
    done = subprocess.run(
        [sys.executable, "-I", "-W", "ignore", "-c", IMPORTS, str(site), *names],
        cwd=site.parent,
        check=True,
        capture_output=True,
        text=True,
    )
    found: dict[str, str] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that holds nothing but the project's wheel, installed."""
    tree = source_tree(tmp_path_factory.mktemp("sources"))
    return installed(tree, tmp_path_factory.mktemp("wheel"))


def test_every_module_can_be_imported_from_the_wheel(site: Path) -> None:
    assert faults(site, module_names()) == {}


def test_data_files_are_in_the_wheel(site: Path) -> None:
    assert {"analysis/report.html", "orchestrator/demo.yaml"} <= set(data_files())
    assert [file for file in data_files() if not (site / file).is_file()] == []


def test_the_wheel_holds_the_rooms_and_nothing_else(site: Path) -> None:
    packages = {path.name for path in site.iterdir() if not path.name.endswith(".dist-info")}
    assert packages - {"bin"} == set(ROOMS)


def test_a_package_that_the_wheel_lacks_is_found(tmp_path: Path) -> None:
    tree = source_tree(tmp_path / "sources")
    text = (tree / "pyproject.toml").read_text()
    short = text.replace('"search_spaces*"', '"search_spaces"').replace('"analysis*", ', "")
    assert short != text
    (tree / "pyproject.toml").write_text(short)
    (tmp_path / "wheel").mkdir()
    names = ["analysis.units", "search_spaces.methods.full", "search_spaces.recipe"]
    found = faults(installed(tree, tmp_path / "wheel"), names)
    assert set(found) == {"analysis.units", "search_spaces.methods.full"}
