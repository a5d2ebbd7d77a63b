"""Reads journals while sweeps write them."""

import json
from pathlib import Path
from typing import Any


def events_of(folder: Path) -> list[dict[str, Any]]:
    """The events in the journal of the sweep in `folder`: its whole lines, none where none is."""
    segments = sorted((folder / "journal").glob("segment-*"))
    lines = [line for segment in segments for line in segment.read_text().split("\n")[:-1]]
    return [json.loads(line) for line in lines]
