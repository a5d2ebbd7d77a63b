"""A walk through folders that keeps what it leaves out, and what it cannot read."""

import os
from collections import defaultdict
from pathlib import Path

from trainables.images.catalog import PassedOver
from trainables.images.faults import refusal

SYSTEM_NAMES = frozenset(
    {
        "#recycle",
        "$RECYCLE.BIN",
        "@eaDir",
        "System Volume Information",
        "Thumbs.db",
        "__MACOSX",
        "__pycache__",
        "desktop.ini",
        "lost+found",
    }
)
"""Names that operating systems and unpackers leave behind; no class or split is called so."""

Place = tuple[int, int]
"""The device and the number of a folder."""

_HIDDEN = "hidden names, which begin with a dot"
_SYSTEM = "leftovers of operating systems and unpackers"
_SPECIAL = "neither files nor folders"
_TWICE = "links to folders that are read already or lead in a circle"


class Walk:
    """Lists folders of this machine, and keeps what is left out and what cannot be read."""

    def __init__(self) -> None:
        self._left_out: dict[str, list[str]] = defaultdict(list)
        self._counts: dict[str, int] = defaultdict(int)
        self._faults: list[str] = []

    def entries(self, folder: str | Path) -> list[os.DirEntry[str]]:
        """Returns what lies in `folder` in the order of names: files, folders and links to them.

        A name that is hidden or a system's is left out, and so is what is neither file nor folder.
        A link that leads nowhere and a folder that cannot be listed are faults.
        """
        try:
            with os.scandir(folder) as found:
                entries = sorted(found, key=lambda entry: entry.name)
        except OSError as error:
            self.fault(f"the folder {folder} cannot be listed ({error.strerror})")
            return []
        return [entry for entry in entries if self._is_kept(entry)]

    def descends(self, folder: os.DirEntry[str], seen: set[Place]) -> bool:
        """Tells whether `folder` is new to `seen`, which it joins, and leaves it out otherwise."""
        place = place_of(folder)
        if place in seen:
            self.pass_over(_TWICE, folder.path)
            return False
        seen.add(place)
        return True

    def pass_over(self, rule: str, place: str, *, files: int = 1) -> None:
        """Leaves `place` out under `rule`, which stands for so many files."""
        self._left_out[rule].append(place)
        self._counts[rule] += files

    def passed_over(self) -> tuple[PassedOver, ...]:
        """Returns what was left out, by rule."""
        return tuple(
            PassedOver(rule=rule, count=self._counts[rule], places=tuple(places))
            for rule, places in self._left_out.items()
        )

    def fault(self, fault: str) -> None:
        """Keeps what is wrong, a clause without the rule, for `check`."""
        self._faults.append(fault)

    def check(self, *, rule: str) -> None:
        """Raises `InputError` with all faults and the `rule`, if there were any."""
        if self._faults:
            raise refusal(self._faults, rule=rule)

    def _is_kept(self, entry: os.DirEntry[str]) -> bool:
        if rule := left_out_by_name(entry.name):
            self.pass_over(rule, entry.path, files=files_below(entry))
        elif entry.is_symlink() and not (link := Path(entry.path)).exists():
            self.fault(f"the link {link} leads to {link.readlink()}, which is not there")
        elif not (entry.is_dir() or entry.is_file()):
            self.pass_over(_SPECIAL, entry.path)
        else:
            return True
        return False


def left_out_by_name(name: str) -> str | None:
    """Returns the rule by which `name` is no class, split or image; None if it may be one."""
    if name.startswith("."):
        return _HIDDEN
    return _SYSTEM if name in SYSTEM_NAMES else None


def files_below(entry: os.DirEntry[str]) -> int:
    """Counts the files in a folder, links not followed; an empty one and a file count 1."""
    if not entry.is_dir(follow_symlinks=False):
        return 1
    return sum(len(files) for _, _, files in os.walk(entry.path)) or 1


def place_of(folder: os.PathLike[str]) -> Place:
    """Returns what tells `folder` from all others, however it is reached."""
    status = Path(folder).stat()
    return status.st_dev, status.st_ino


def places_above(folder: str | Path) -> set[Place]:
    """Returns the places of the folders that contain `folder`."""
    return set(map(place_of, Path(folder).resolve().parents))
