"""Searchers are compared as by hand: paired by seed, to the best peer of each task."""

from typing import Any

import numpy as np
import pytest

from tests.benchmarks.search.comparison import paired, ratios
from tests.benchmarks.search.searchers import PEER_NAMES, SEARCHERS
from tests.benchmarks.search.sheet import Replayed, Sheet

NAN = float("nan")


def test_the_ratio_is_to_the_best_peer_of_each_task() -> None:
    costs = np.array(
        [
            [[1.0, 4.0], [4.0, 4.0], [8.0, 2.0]],  # on average 2, 4 and 4
            [[9.0, 9.0], [6.0, 6.0], [3.0, 3.0]],
        ]
    )
    mine, first, second = ratios(costs, [1, 2])
    assert mine.mean == pytest.approx(np.sqrt(0.5 * 3.0))
    assert mine.worst_task == pytest.approx(3.0)
    assert mine.low == pytest.approx(0.25)  # the first seed alone, drawn twice, of the first task
    assert mine.high == pytest.approx(3.0)
    assert second.mean == pytest.approx(1.0)
    assert first.mean == pytest.approx(np.sqrt(2.0))


def test_a_searcher_with_fewer_seeds_is_compared_at_those() -> None:
    costs = np.array([[[1.0, NAN, NAN], [2.0, 8.0, 8.0]]])
    mine, _ = ratios(costs, [1])
    assert mine.mean == pytest.approx(0.5)
    assert paired(costs, 0, 1) == pytest.approx(0.5)


def test_a_sheet_counts_what_was_never_reached_as_twice_the_budget() -> None:
    peer = sorted(PEER_NAMES)[0]
    mine = next(name for name in SEARCHERS if name not in PEER_NAMES)
    sheet = Sheet(
        name="made", workers=1, replays=[replayed(mine, runs=5.0), replayed(peer, runs=None)]
    )
    lines = [line for line in sheet.ratios() if line["to"] == "0.95"]
    ratio = {line["searcher"]: (line["mean"], line["never"]) for line in lines}
    assert ratio == {mine: (0.125, 0.0), peer: (1.0, 1.0)}


def replayed(searcher: str, *, runs: float | None) -> Replayed:
    score: dict[str, Any] = {
        "runs_to": dict.fromkeys(("0.9", "0.95", "0.99"), runs),
        "share_at": {},
    }
    return Replayed(task="t", searcher=searcher, seed=0, workers=1, budget=20.0, score=score)
