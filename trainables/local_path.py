"""Paths in a config, which must mean the same on every machine that reads them."""

from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator

NAMES = ("digits", "hub")
"""Values that are names and never paths, even if a file in the working folder is so called."""


def _absolute(value: Any) -> Any:
    """Returns a path that exists as an absolute one, and anything else as it is."""
    if not isinstance(value, str) or not value or value in NAMES:
        return value
    path = Path(value).expanduser()
    return str(path.resolve()) if path.exists() else value


LocalPath = Annotated[str, BeforeValidator(_absolute)]
"""A path, a URI or a name. A path that exists is made absolute when the config is read."""
