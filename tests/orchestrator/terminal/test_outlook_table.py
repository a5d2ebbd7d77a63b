"""What a budget buys is legible on a terminal of any width."""

from dataclasses import replace
from io import StringIO

import pytest
from rich.console import Console

from orchestrator.search.rehearsal import Outlook, RungBill
from orchestrator.terminal.outlook_table import OutlookTable

OUTLOOK = Outlook(
    levels=(2e9, 4e9, 8e9),
    rungs=(
        RungBill(begun=12, confirming=1, train_flops=26e9, eval_flops=1.3e9, worker_seconds=40),
        RungBill(),
        RungBill(begun=1, raised=2, train_flops=24e9, eval_flops=3e8, worker_seconds=20),
    ),
    workers=2,
    flops_per_second=1e9,
    wall_seconds=33,
    whole=True,
)


def lines(outlook: Outlook, width: int = 80) -> list[str]:
    output = StringIO()
    Console(width=width, file=output).print(OutlookTable(outlook))
    return [line.rstrip() for line in output.getvalue().splitlines()]


def test_each_rung_that_has_trials_takes_a_line_and_the_last_is_their_sum() -> None:
    title, _, _, *rungs, everything, terms = lines(OUTLOOK)
    assert title == "What the budget buys, about"
    assert [line.split() for line in rungs] == [
        [*("2", "G"), "13", "0", "1", *("26", "G"), *("1.3", "G"), *("20", "s")],
        [*("8", "G"), "3", "2", "0", *("24", "G"), *("300", "M"), *("10", "s")],
    ]
    assert everything.split() == [
        *("all", "16", "2", "1"),
        *("50", "G", "1.6", "G", "33", "s"),
    ]
    assert terms == "2 trials at a time, each at 1 GFLOPs a second as on this machine"


def test_one_worker_is_one_trial_at_a_time() -> None:
    assert lines(replace(OUTLOOK, workers=1))[-1].startswith("one trial at a time, ")


def test_a_budget_that_was_rehearsed_in_part_says_so() -> None:
    terms = " ".join(lines(replace(OUTLOOK, whole=False))[5:])
    assert terms.endswith("; the rest of the budget buys more of the same")


@pytest.mark.parametrize("width", [60, 80, 200])
def test_no_number_is_cut(width: int) -> None:
    shown = lines(OUTLOOK, width)
    assert all(len(line) <= width for line in shown)
    assert [line.split()[0] for line in shown[3:6]] == ["2", "8", "all"]
    assert "…" not in "".join(shown)
