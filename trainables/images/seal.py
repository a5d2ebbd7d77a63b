"""The seal of a folder: digests of its files, by which damage is found when they are read back."""

import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

_SEAL = "store.json"
_VERIFIED = "verified.json"
_BLOCK_BYTES = 1 << 20
_MAX_THREADS = 16


class DamagedError(Exception):
    """A folder whose files are not as they were sealed; the message says which and how."""


def seal(folder: Path, content: Mapping[str, Any], *, files: Sequence[str]) -> None:
    """Writes the digests of `files` into `folder`, and `content`, plain JSON types, with them."""
    stamps = _stamps(folder, files)
    digests = {name: _file_digest(folder / name) for name in files}
    inside = {"content": dict(content), "digests": digests}
    text = json.dumps({**inside, "seal": _seal_of(inside)})
    (folder / _SEAL).write_text(text, encoding="utf-8")
    _keep_verified(folder, stamps)


def sealed_content(folder: Path, *, trusting: bool) -> tuple[dict[str, Any], str]:
    """Returns the content of the folder's seal, and the seal, by which equal folders are known.

    Every file is read and compared with its digest. When `trusting`, those are left out that have
    not been written to since this node last compared them. Raises `DamagedError` for a missing or
    changed file, and `FileNotFoundError` for a folder that is not there.
    """
    if not folder.exists():
        raise FileNotFoundError(folder)
    try:
        sealed = json.loads((folder / _SEAL).read_text(encoding="utf-8"))
        inside = {"content": sealed["content"], "digests": sealed["digests"]}
        if sealed["seal"] != _seal_of(inside):
            raise DamagedError(f"{_SEAL} was changed")
        verified = _verified(folder) if trusting else {}
        stamps = _stamps(folder, inside["digests"])
        for name, digest in inside["digests"].items():
            if verified.get(name) != stamps[name] and _file_digest(folder / name) != digest:
                raise DamagedError(f"{name} was changed")
    except PermissionError:
        raise
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DamagedError(f"{type(error).__name__}: {error}") from error
    if verified != stamps:
        _keep_verified(folder, stamps)
    content: dict[str, Any] = inside["content"]
    return content, str(sealed["seal"])


def digest_of(file: BinaryIO, *, first: int, last: int) -> bytes:
    """Returns 32 bytes that change with the file's bytes from `first` to `last`, `last` excluded.

    It is the SHA-256 of those of blocks of a mebibyte, which a few threads read; what the file
    object has buffered, it does not see.
    """

    def block(start: int) -> bytes:
        content = os.pread(file.fileno(), min(_BLOCK_BYTES, last - start), start)
        return hashlib.sha256(content).digest()

    with ThreadPoolExecutor(min(os.cpu_count() or 1, _MAX_THREADS)) as pool:
        blocks = list(pool.map(block, range(first, last, _BLOCK_BYTES)))
    return hashlib.sha256(b"".join(blocks)).digest()


def _seal_of(inside: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(inside, sort_keys=True).encode()).hexdigest()


def _file_digest(path: Path) -> str:
    with path.open("rb") as file:
        return digest_of(file, first=0, last=path.stat().st_size).hex()


def _stamps(folder: Path, names: Iterable[str]) -> dict[str, list[int]]:
    """Returns what changes whenever somebody writes to the files, by name."""
    statuses = {name: (folder / name).stat() for name in names}
    return {
        name: [status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns]
        for name, status in statuses.items()
    }


def _verified(folder: Path) -> Mapping[str, Any]:
    """Returns the stamps of the files as this node last compared them with their digests."""
    with suppress(OSError, ValueError):
        stamps = json.loads((folder / _VERIFIED).read_text(encoding="utf-8"))
        if isinstance(stamps, dict):
            return stamps
    return {}


def _keep_verified(folder: Path, stamps: Mapping[str, Any]) -> None:
    """Notes that the files are as they were sealed; where it cannot, they are compared again."""
    unfinished = folder / f".{_VERIFIED}.{os.getpid()}"
    with suppress(OSError):
        unfinished.write_text(json.dumps(stamps), encoding="utf-8")
        unfinished.replace(folder / _VERIFIED)
