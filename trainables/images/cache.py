"""Where a node keeps its decoded images."""

import os
import tempfile
from pathlib import Path


def image_cache(cache: str | None) -> Path:
    """Where every node keeps decoded images: the config's folder, else a user's own under tmp."""
    if cache is not None:
        return Path(cache).expanduser()
    return Path(tempfile.gettempdir()) / f"prunetune-{os.getuid()}" / "images"
