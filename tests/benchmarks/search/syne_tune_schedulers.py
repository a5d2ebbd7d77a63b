"""Syne Tune's schedulers behind a line protocol, run by the Python of an environment that has it.

Each line of JSON on the standard input is answered by one on the standard output:

    {"new": "moasha", "space": {parameter: Optuna distribution}, "rungs": 7, "seed": 0}
    {"suggest": 0}                                                  -> {"config": {...} or null}
    {"add": 0, "config": {...}}                                     what the suggestion became
    {"result": 0, "rung": 0, "error": 0.5, "log_flops": 9.0}        -> {"goes_on": true}
    {"complete": 0, "rung": 6, "error": 0.5, "log_flops": 9.0}      or "remove", without a result
"""

import datetime
import json
import logging
import sys
from typing import Any

import numpy as np
from syne_tune.backend.trial_status import Trial
from syne_tune.config_space import choice, lograndint, loguniform, randint, uniform
from syne_tune.optimizer.baselines import ASHACQR
from syne_tune.optimizer.scheduler import SchedulerDecision
from syne_tune.optimizer.schedulers.multiobjective.moasha import MOASHA

REDUCTION_FACTOR = 2
_HAIR = 1e-9


def main() -> None:
    """Serves one scheduler after another until the input ends."""
    logging.disable(logging.CRITICAL)
    answers, sys.stdout = sys.stdout, sys.stderr
    served: Served | None = None
    for line in sys.stdin:
        request = json.loads(line)
        if "new" in request:
            served = Served(request)
            answer: dict[str, Any] = {}
        else:
            assert served is not None
            answer = served.answer(request)
        print(json.dumps(answer), file=answers, flush=True)


class Served:
    """One scheduler with its trials; rung r is 2^r units of time, so that each rung judges."""

    def __init__(self, request: dict[str, Any]) -> None:
        np.random.seed(request["seed"])  # noqa: NPY002 - MOASHA draws from numpy's global state
        space = {name: _domain(json.loads(text)) for name, text in request["space"].items()}
        times: dict[str, Any] = {
            "time_attr": "time",
            "max_t": REDUCTION_FACTOR ** (request["rungs"] - 1),
            "reduction_factor": REDUCTION_FACTOR,
            "random_seed": request["seed"],
        }
        if request["new"] == "moasha":
            self.scheduler = MOASHA(space, metrics=["error", "log_flops"], **times)
        else:
            self.scheduler = ASHACQR(space, metric="error", **times)
        self.trials: dict[int, Trial] = {}

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        """Does what a request asks."""
        if "suggest" in request:
            suggestion = self.scheduler.suggest()
            return {"config": None if suggestion is None else _plain(suggestion.config)}
        if "add" in request:
            number = request["add"]
            self.trials[number] = Trial(number, request["config"], datetime.datetime.now())
            self.scheduler.on_trial_add(self.trials[number])
        elif "result" in request:
            trial = self.trials[request["result"]]
            decision = self.scheduler.on_trial_result(trial, _result(request))
            return {"goes_on": bool(decision == SchedulerDecision.CONTINUE)}
        elif "complete" in request:
            self.scheduler.on_trial_complete(self.trials[request["complete"]], _result(request))
        else:
            self.scheduler.on_trial_remove(self.trials[request["remove"]])
        return {}


def _result(request: dict[str, Any]) -> dict[str, Any]:
    """The result as the scheduler takes it; a hair apart, as equal ones hang MOASHA's sort."""
    time = REDUCTION_FACTOR ** request["rung"]
    error = request["error"] + _HAIR * np.random.random()  # noqa: NPY002 - the state seeded above
    return {"time": time, "error": error, "log_flops": request["log_flops"]}


def _domain(distribution: dict[str, Any]) -> Any:
    """Syne Tune's domain of an Optuna distribution; grids become intervals."""
    values = distribution["attributes"]
    if distribution["name"] == "CategoricalDistribution":
        return choice(values["choices"])
    if distribution["name"] == "IntDistribution":
        return (lograndint if values["log"] else randint)(values["low"], values["high"])
    return (loguniform if values["log"] else uniform)(values["low"], values["high"])


def _plain(config: dict[str, Any]) -> dict[str, Any]:
    return {k: v.item() if isinstance(v, np.generic) else v for k, v in config.items()}


if __name__ == "__main__":
    main()
