"""The outlook of a sweep as a table for a terminal: what its budget buys, rung by rung."""

from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table
from rich.text import Text

from analysis import units
from orchestrator.search.rehearsal import Outlook, RungBill


class OutlookTable:
    """Rich's rendering of an outlook; a line a rung that has trials, and one for all."""

    def __init__(self, outlook: Outlook) -> None:
        self._outlook = outlook

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        outlook = self._outlook
        table = Table(
            title="What the budget buys, about",
            title_style="bold",
            title_justify="left",
            header_style="dim",
            box=None,
            pad_edge=False,
            padding=(0, 2, 0, 0),
        )
        for heading in ("rung\nFLOPs", "\ntrials", "of them\nraised", "confir-\nming"):
            table.add_column(heading, justify="right")
        for heading in ("train\nFLOPs", "evaluation\nFLOPs", "\ntime"):
            table.add_column(heading, justify="right")
        for level, rung in zip(outlook.levels, outlook.rungs, strict=True):
            if rung.trials:
                seconds = rung.worker_seconds / outlook.workers
                table.add_row(units.count(level), *_cells(rung, seconds=seconds))
        total = _cells(outlook.total, seconds=outlook.wall_seconds)
        table.add_row("all", *total, style="bold")
        yield table
        yield Text(self._terms(), style="dim")

    def _terms(self) -> str:
        """The pace that the times are told at, and whether the budget holds more."""
        outlook = self._outlook
        side = "one trial" if outlook.workers == 1 else f"{outlook.workers} trials"
        rate = units.flops(outlook.flops_per_second)
        said = f"{side} at a time, each at {rate} a second as on this machine"
        return said if outlook.whole else f"{said}; the rest of the budget buys more of the same"


def _cells(bill: RungBill, *, seconds: float) -> tuple[str, ...]:
    """Returns the cells of a bill that takes so many seconds."""
    return (
        str(bill.trials),
        str(bill.raised),
        str(bill.confirming),
        units.count(bill.train_flops),
        units.count(bill.eval_flops),
        units.duration(seconds),
    )
