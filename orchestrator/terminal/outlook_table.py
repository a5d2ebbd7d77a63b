"""The outlook of a sweep as a table for a terminal: what its budget buys, rung by rung."""

from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table

from analysis import units
from orchestrator.search.rehearsal import Outlook


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
            caption=self._caption(),
            caption_justify="left",
            header_style="dim",
            box=None,
            pad_edge=False,
            padding=(0, 2, 0, 0),
        )
        for heading in ("rung\nFLOPs", "\ntrials", "raised\namong them"):
            table.add_column(heading, justify="right")
        for heading in ("train\nFLOPs", "evaluation\nFLOPs", "\ntime"):
            table.add_column(heading, justify="right")
        for level, rung in zip(outlook.levels, outlook.rungs, strict=True):
            if rung.trials:
                table.add_row(
                    units.count(level),
                    str(rung.trials),
                    str(rung.raised),
                    units.count(rung.train_flops),
                    units.count(rung.eval_flops),
                    units.duration(rung.worker_seconds / outlook.workers),
                )
        total = outlook.total
        table.add_row(
            "all",
            str(total.trials),
            str(total.raised),
            units.count(total.train_flops),
            units.count(total.eval_flops),
            units.duration(outlook.wall_seconds),
            style="bold",
        )
        yield table

    def _caption(self) -> str:
        outlook = self._outlook
        side = "one trial" if outlook.workers == 1 else f"{outlook.workers} trials"
        said = f"{side} at a time, each at {units.flops(outlook.flops_per_second)} a second"
        return said if outlook.whole else f"{said}; the rest of the budget buys more of the same"
