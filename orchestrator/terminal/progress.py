"""The progress of a sweep: a live table on a terminal, and elsewhere a line now and then."""

import time
from collections.abc import Callable
from math import inf

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from analysis import units
from orchestrator.search.config import Budget
from orchestrator.store.ledger import Ledger, TrialState
from orchestrator.terminal.frontier_table import FrontierTable

REFRESH_SECONDS = 0.5
LINE_SECONDS = 15.0
SHOWN_POINTS = 12


class Progress:
    """Shows the ledger while a sweep runs; `update` may be called as often as one likes."""

    def __init__(
        self,
        ledger: Ledger,
        *,
        name: str,
        budget: Budget,
        reference_flops: float,
        console: Console,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._ledger = ledger
        self._name = name
        self._budget = budget
        self._reference_flops = reference_flops
        self._console = console
        self._live = Live(console=console, auto_refresh=False, transient=True)
        self._clock = clock
        self._started = clock()
        self._elapsed_before = ledger.elapsed_seconds
        self._shown_at = -inf

    def __enter__(self) -> "Progress":
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(self, *exception: object) -> None:
        if self._console.is_terminal:
            self._live.stop()

    def update(self) -> None:
        """Shows the sweep again unless it was shown just before."""
        now = self._clock()
        period = REFRESH_SECONDS if self._console.is_terminal else LINE_SECONDS
        if now - self._shown_at < period:
            return
        self._shown_at = now
        if self._console.is_terminal:
            self._live.update(
                Group(self._summary(), FrontierTable(self._ledger.frontier, newest=SHOWN_POINTS)),
                refresh=True,
            )
        else:
            self._console.print(self._line(), soft_wrap=True)

    @property
    def _elapsed(self) -> float:
        return self._elapsed_before + self._clock() - self._started

    def _spent_share(self) -> float:
        """Returns the share of the budget that is spent, 0-1, by the limit that is nearest."""
        shares = [0.0]
        if self._budget.trials:
            finished = sum(n for state, n in self._ledger.states().items() if state.finished)
            shares.append(finished / self._budget.trials)
        if self._budget.sweep_flops:
            shares.append(self._ledger.sweep_flops / self._budget.sweep_flops)
        if self._budget.wall_time:
            shares.append(self._elapsed / self._budget.wall_time)
        return min(1.0, max(shares))

    def _time_left(self) -> str:
        share = self._spent_share()
        return units.duration(self._elapsed / share - self._elapsed) if share > 0.02 else "unknown"

    def _counts(self) -> dict[str, int]:
        states = self._ledger.states()
        return {
            "running": states[TrialState.RUNNING],
            "paused": states[TrialState.PAUSED],
            "done": states[TrialState.COMPLETE],
            "stopped early": states[TrialState.HALVED],
            "diverged": states[TrialState.DIVERGED],
            "failed": states[TrialState.FAILED],
            "infeasible": states[TrialState.INFEASIBLE],
        }

    def _spent(self) -> str:
        spent = units.flops(self._ledger.sweep_flops)
        limit = self._budget.sweep_flops
        return f"{spent} of {units.flops(limit)}" if limit else spent

    def _hypervolume(self) -> float:
        return self._ledger.frontier.hypervolume(reference_flops=self._reference_flops)

    def _summary(self) -> Table:
        table = Table.grid(padding=(0, 2))
        table.add_column(style="dim")
        table.add_column()
        counts = Text(", ".join(f"{n} {what}" for what, n in self._counts().items() if n))
        table.add_row("sweep", Text(self._name, style="bold"))
        table.add_row("trials", counts)
        table.add_row("compute", self._spent())
        table.add_row("hypervolume", f"{self._hypervolume():.4f}")
        table.add_row("time", f"{units.duration(self._elapsed)} gone, {self._time_left()} left")
        table.add_row("budget", ProgressBar(total=1.0, completed=self._spent_share(), width=40))
        return table

    def _line(self) -> str:
        counts = ", ".join(f"{n} {what}" for what, n in self._counts().items() if n)
        return (
            f"{self._name}: {counts or 'starting'}; {self._spent()}; "
            f"{len(self._ledger.frontier.points)} frontier points, "
            f"hypervolume {self._hypervolume():.4f}; {self._time_left()} left"
        )
