"""The import graph of the rooms: `make graph`, or `make graph AT=path` for another checkout.

Reads every import of every file, those inside of functions and of type-checking blocks too, and
prints how many files and folders import one another, and whether any do so in a circle. A file that
lies in a room directly counts as a folder of its own, because it answers a question of its own.
"""

import ast
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

ROOMS = ("analysis", "orchestrator", "search_spaces", "trainables")

Arrows = Mapping[str, frozenset[str]]
"""Importer -> imported; everything that lies in the rooms is a key."""


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
        if not isinstance(node, ast.stmt | ast.expr):
            continue
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) + 1 - node.level] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            names = [f"{base}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "import_module":
            names = [str(arg.value) for arg in node.args[:1] if isinstance(arg, ast.Constant)]
        for name in names:
            yield Import(file=file.as_posix(), line=node.lineno, name=name)


def file_arrows(root: Path) -> Arrows:
    """Which file imports which; a name from a facade counts as an import of the facade."""
    files = {path.relative_to(root).as_posix(): path for path in sources(root)}
    return {
        file: frozenset(
            imported
            for found in imports_of(path, root)
            if (imported := _file_of(found.name, files)) and imported != file
        )
        for file, path in files.items()
    }


def folder_arrows(files: Arrows) -> Arrows:
    """Which folder imports which.

    An import of a facade that imports nothing itself does not count: it gives the folder's place
    alone, which loaders list to find a method or a space by name.
    """
    found: dict[str, set[str]] = {folder_of(file): set() for file in files}
    for file, imported in files.items():
        folder = folder_of(file)
        for other in imported:
            only_listed = other.endswith("/__init__.py") and not files[other]
            if not only_listed and folder_of(other) != folder:
                found[folder].add(folder_of(other))
    return {folder: frozenset(others) for folder, others in found.items()}


def folder_of(file: str) -> str:
    """The folder that `file` lies in; the file itself where that is a room."""
    folder, _, _ = file.rpartition("/")
    return file if folder in ROOMS else folder


def circles(arrows: Arrows) -> list[list[str]]:
    """Each largest set whose members all import one another, directly or by way of others."""
    reached = {start: _reached(start, arrows) for start in arrows}
    found = {
        tuple(sorted(other for other in reached[start] if start in reached[other]))
        for start in arrows
        if start in reached[start]
    }
    return sorted(map(list, found))


def both_ways(arrows: Arrows) -> list[tuple[str, str]]:
    """Each pair that imports one another directly."""
    return sorted(
        (one, other)
        for one, imported in arrows.items()
        for other in imported
        if one < other and one in arrows[other]
    )


def report(root: Path) -> str:
    """The graph of the checkout at `root`, in numbers and circles."""
    files = file_arrows(root)
    folders = folder_arrows(files)
    lines = [
        f"{'':14} {'files':>6} {'arrows':>7} {'folders':>8} {'arrows':>7}",
        *(_row(room, *(_within(room, arrows) for arrows in (files, folders))) for room in ROOMS),
        _row("all rooms", files, folders),
        *_listed("circles among files", map(" ⇄ ".join, circles(files))),
        *_listed("circles among folders", map(" ⇄ ".join, circles(folders))),
        *_listed("folders that import each other", map(" ⇄ ".join, both_ways(folders))),
    ]
    return "\n".join(lines)


def _file_of(name: str, files: Iterable[str]) -> str | None:
    """The file in the rooms that holds the module or name `name`, if any does."""
    parts = name.split(".")
    for length in range(len(parts), 0, -1):
        path = "/".join(parts[:length])
        for file in (f"{path}.py", f"{path}/__init__.py"):
            if file in files:
                return file
    return None


def _reached(start: str, arrows: Arrows) -> set[str]:
    reached: set[str] = set()
    stack = [start]
    while stack:
        fresh = arrows[stack.pop()] - reached
        reached |= fresh
        stack.extend(fresh)
    return reached


def _within(room: str, arrows: Arrows) -> Arrows:
    inside = {place for place in arrows if place.startswith(f"{room}/")}
    return {place: imported & inside for place, imported in arrows.items() if place in inside}


def _row(name: str, files: Arrows, folders: Arrows) -> str:
    counts = [len(files), sum(map(len, files.values()))]
    counts += [len(folders), sum(map(len, folders.values()))]
    return "{:14} {:6} {:7} {:8} {:7}".format(name, *counts)


def _listed(title: str, rows: Iterable[str]) -> list[str]:
    listed = [f"  {row}" for row in rows]
    return [f"{title}: {len(listed) or 'none'}", *listed]


if __name__ == "__main__":
    print(report(Path(sys.argv[1] if len(sys.argv) > 1 else Path(__file__).parents[1]).resolve()))
