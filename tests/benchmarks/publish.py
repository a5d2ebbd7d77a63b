"""Publishes the findings of a benchmark: one JSON file each, printed as a table."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table


def publish(name: str, *, title: str, result: Mapping[str, Any]) -> None:
    """Writes `result` to `NAME.json` under `results/` and prints it.

    Plain values make one table; a list of mappings under a key makes a table of its own, a column
    for each key of its first row.
    """
    (Path(__file__).parent / "results" / f"{name}.json").write_text(
        json.dumps(result, indent=2) + "\n"
    )
    console = Console()
    summary = Table("figure", "value", title=title)
    for key, value in result.items():
        if not _is_rows(value):
            summary.add_row(key, str(value))
    console.print(summary)
    for key, value in result.items():
        if _is_rows(value):
            table = Table(*value[0], title=key)
            for row in value:
                table.add_row(*(str(row.get(column, "")) for column in value[0]))
            console.print(table)


def _is_rows(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and isinstance(value[0], Mapping)
