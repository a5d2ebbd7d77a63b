"""Syne Tune's searchers as peers, in a process of an environment that has the library.

python3 -m venv /tmp/syne && /tmp/syne/bin/pip install syne-tune xgboost
SYNE_TUNE_PYTHON=/tmp/syne/bin/python make bench-search
"""

import functools
import json
import os
import subprocess
from math import log10
from pathlib import Path
from typing import Any

from optuna.distributions import BaseDistribution, CategoricalDistribution, distribution_to_json
from optuna.samplers import RandomSampler
from optuna.trial import FixedTrial

from search_spaces.draws import Draw, draw
from search_spaces.ranges import RangedTrial, Ranges
from search_spaces.recipe import InvalidRecipeError
from tests.benchmarks.search.peers import Peer, Run, peer, run_of
from tests.benchmarks.search.pool import Pool
from tests.benchmarks.search.replay import Search, Setting
from tests.benchmarks.search.tables import CurveTable

PYTHON = "SYNE_TUNE_PYTHON"
"""Environment variable: the Python of the environment that has Syne Tune."""
_DRAWS = 256
"""Draws that find the parameters of a space."""
_ATTEMPTS = 32


class SyneTunePeer(Peer):
    """A scheduler of Syne Tune over the flat space of all parameters."""

    def __init__(self, setting: Setting, pool: Pool, scheduler: str, ranges: Ranges) -> None:
        self._setting, self._table, self._pool = setting, setting.table, pool
        self._ranges = {**self._table.ranges, **ranges}
        self._space = _parameters(self._table, self._ranges)
        self._trials = 0
        space = {name: distribution_to_json(d) for name, d in self._space.items()}
        rungs = len(self._table.levels)
        _ask({"new": scheduler, "space": space, "rungs": rungs, "seed": setting.seed})

    def next_run(self) -> Run | None:
        for _ in range(_ATTEMPTS):
            config = _ask({"suggest": self._trials})["config"]
            if config is None:
                return None
            try:
                drawn = self._pool.snap(self._recipe(config))
            except InvalidRecipeError:
                continue
            _ask({"add": self._trials, "config": {**config, **drawn.params}})
            run = run_of(self._table, drawn, seed=self._setting.seed)
            run.key = self._trials
            self._trials += 1
            return run
        return None

    def goes_on(self, run: Run) -> bool:
        return bool(_ask({"result": run.key, **_result(run)})["goes_on"])

    def over(self, run: Run, *, stopped: bool, failed: bool) -> None:
        if failed:
            target = log10(run.draw.recipe.target_flops)
            _ask({"result": run.key, "rung": 0, "error": 1.0, "log_flops": target})
        if failed or stopped:
            _ask({"remove": run.key})
        else:
            _ask({"complete": run.key, **_result(run)})

    def _recipe(self, config: dict[str, Any]) -> Draw:
        """The recipe that the space makes of a point of the flat space."""
        fixed = FixedTrial({name: self._on_grid(name, value) for name, value in config.items()})
        ranged = RangedTrial(fixed, self._ranges, clip=True)
        recipe = self._table.space(ranged, self._table.problem)
        return Draw(
            recipe=recipe,
            names=ranged.names,
            params=fixed.params,
            distributions=fixed.distributions,
        )

    def _on_grid(self, name: str, value: Any) -> Any:
        distribution = self._space[name]
        step = getattr(distribution, "step", None)
        if isinstance(distribution, CategoricalDistribution) or step is None:
            return value
        low: float = getattr(distribution, "low", 0.0)
        return low + round((value - low) / step) * step


def _result(run: Run) -> dict[str, Any]:
    newest = run.points[-1].measurement
    return {
        "rung": newest.rung,
        "error": newest.val_error,
        "log_flops": log10(newest.train_flops),
    }


def _parameters(table: CurveTable, ranges: Ranges) -> dict[str, BaseDistribution]:
    """Every parameter that random draws of the space meet."""
    found: dict[str, BaseDistribution] = {}
    for seed in range(_DRAWS):
        sampler = RandomSampler(seed=seed)
        drawn = draw(table.space, ranges, table.problem, sampler, clip=True)
        found.update(drawn.distributions)
    return found


def _ask(request: dict[str, Any]) -> dict[str, Any]:
    """The answer of this process's server, which serves one search after another."""
    process = _server()
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(json.dumps(request) + "\n")
    process.stdin.flush()
    line = process.stdout.readline()
    if not line:
        raise RuntimeError(f"Syne Tune's process ended at {request!r}; its error is above.")
    answer: dict[str, Any] = json.loads(line)
    return answer


@functools.cache
def _server() -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [os.environ[PYTHON], str(Path(__file__).with_name("syne_tune_schedulers.py"))],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": "", "PYTHONWARNINGS": "ignore"},
    )


def syne_tune_peers() -> dict[str, Search]:
    """MOASHA, which chooses its targets, and ASHACQR, whose trials aim at the top.

    None where no environment with the library is named.
    """
    if PYTHON not in os.environ:
        return {}
    return {
        "moasha": peer(lambda setting, pool: SyneTunePeer(setting, pool, "moasha", {})),
        "ashacqr": peer(
            lambda setting, pool: SyneTunePeer(
                setting, pool, "ashacqr", {"target_rung": len(setting.table.levels) - 1}
            )
        ),
    }
