"""The folder of a node for what can be made again: decoded images and stored features."""

import os
import stat
import tempfile
from pathlib import Path

from trainables.errors import InputError


def image_cache(cache: str | None) -> Path:
    """Returns where a node keeps decoded images: the config's folder, else a user's own under tmp.

    Raises `InputError` where the user's own is not theirs alone.
    """
    if cache is not None:
        return Path(cache).expanduser()
    return private_folder(Path(tempfile.gettempdir())) / "images"


def private_folder(parent: Path) -> Path:
    """Returns the user's own folder in `parent`, which others may write to; made if missing.

    Anyone can make a folder of that name first, and fill it with images or weights of theirs.
    Raises `InputError` unless it is a folder of this user's that nobody else may write to.
    """
    folder = parent / f"prunetune-cache-{os.getuid()}"
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        status = folder.lstat()
    except OSError as error:
        raise InputError(
            f"The folder {folder} cannot be made ({error.strerror}), but files that can be made "
            "again are kept there; set TMPDIR to a folder with the rights to write, or "
            "storage.cache to another."
        ) from error
    others_write = status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid() or others_write:
        raise InputError(
            f"The folder {folder} may hold what others put there (it is a link, belongs to "
            "another user, or is open for others to write), but what is kept there is taken as it "
            "is; remove it, or set storage.cache to a folder of your own."
        )
    return folder
