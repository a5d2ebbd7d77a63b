"""A running sweep shows where it stands: a table on a terminal, a line now and then elsewhere."""

import re
from io import StringIO

from rich.console import Console

from orchestrator.search.config import Budget
from orchestrator.store.ledger import Ledger, TrialState
from orchestrator.terminal.progress import LINE_SECONDS, REFRESH_SECONDS, Progress
from tests.orchestrator.fake_trials import LEVELS, Clock, ledger_of, record, reported


def a_sweep() -> Ledger:
    """Two complete, one halved, one failed, one infeasible, one running; 6 GFLOPs, 2 points."""
    ledger = ledger_of({0: [0.5, 0.4], 1: [0.6, 0.45], 2: [0.7], 3: [], 4: [], 5: [0.9]})
    ends = {
        "t0": TrialState.COMPLETE,
        "t1": TrialState.COMPLETE,
        "t2": TrialState.HALVED,
        "t3": TrialState.FAILED,
        "t4": TrialState.INFEASIBLE,
    }
    for trial_id, state in ends.items():
        ledger.finished(trial_id, state)
    return ledger


class Shown:
    """A console and what it shows."""

    def __init__(self, ledger: Ledger, budget: Budget, *, terminal: bool, width: int = 80) -> None:
        self.clock = Clock()
        self._output = StringIO()
        self.progress = Progress(
            ledger,
            name="flowers",
            budget=budget,
            reference_flops=LEVELS[-1],
            console=Console(
                file=self._output,
                force_terminal=terminal,
                width=width,
                height=40,
                color_system=None,
                legacy_windows=False,
            ),
            clock=self.clock,
        )

    @property
    def text(self) -> str:
        return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", self._output.getvalue())


def test_a_terminal_shows_state_budget_and_frontier_in_80_columns() -> None:
    shown = Shown(a_sweep(), Budget(trials=10), terminal=True)
    with shown.progress:
        shown.clock.now += 50
        shown.progress.update()
        text = shown.text
    for part in (
        "flowers",
        "1 running, 2 done, 1 stopped early, 1 failed, 1 infeasible",
        "6 GFLOPs",
        "50 s gone, 50 s left",
        "Compute-optimal frontier",
        "0 @ 1",
        "40.0 %",
        "lr 0.01 d1 32px b32",
    ):
        assert part in text
    assert max(len(line) for line in text.splitlines()) <= 80


def test_time_left_follows_the_limit_that_is_nearest() -> None:
    for budget, left in (
        (Budget(sweep_flops=12e9), "1 min 40 s left"),
        (Budget(sweep_flops=12e9, trials=100), "1 min 40 s left"),
        (Budget(wall_time=125), "25 s left"),
        (Budget(trials=6, wall_time=1000), "20 s left"),
    ):
        shown = Shown(a_sweep(), budget, terminal=False)
        shown.clock.now += 100
        shown.progress.update()
        assert left in shown.text, budget


def test_a_line_is_printed_now_and_then_where_there_is_no_terminal() -> None:
    ledger = a_sweep()
    shown = Shown(ledger, Budget(trials=10), terminal=False)
    with shown.progress:
        for _ in range(100):
            shown.clock.now += 1
            shown.progress.update()
    lines = shown.text.splitlines()
    assert 100 / LINE_SECONDS <= len(lines) <= 100 / LINE_SECONDS + 1
    assert lines[0].startswith("flowers: 1 running, 2 done")
    assert "2 frontier points, hypervolume" in lines[0]


def test_a_terminal_is_not_redrawn_for_every_step() -> None:
    shown = Shown(a_sweep(), Budget(trials=10), terminal=True)
    with shown.progress:
        shown.progress.update()
        before = shown.text
        shown.progress.update()
        assert shown.text == before
        shown.clock.now += REFRESH_SECONDS
        shown.progress.update()
        assert shown.text != before


def test_nothing_measured_yet_is_shown_too() -> None:
    for terminal in (True, False):
        shown = Shown(ledger_of({}), Budget(trials=10), terminal=terminal)
        with shown.progress:
            shown.progress.update()
            assert "hypervolume" in shown.text
            assert "unknown" in shown.text


def test_a_resumed_sweep_counts_the_time_before() -> None:
    clock = Clock()
    ledger = ledger_of({})
    ledger._clock = clock
    ledger.open(sweep_id="sweep")
    clock.now += 100
    ledger.suggested(record(0))
    ledger.measured("t0", reported(0))
    shown = Shown(ledger, Budget(wall_time=400), terminal=False)
    shown.clock.now += 100
    shown.progress.update()
    assert "3 min 20 s left" in shown.text
