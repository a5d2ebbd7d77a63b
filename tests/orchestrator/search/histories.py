"""Studies made of numbers, which samplers draw from: what their tests share."""

from random import Random

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
from optuna.samplers import RandomSampler
from optuna.trial import FrozenTrial, create_trial
from optuna.trial import TrialState as StudyState

SPACE: dict[str, BaseDistribution] = {
    "rate": FloatDistribution(1e-4, 1.0, log=True),
    "share": FloatDistribution(0.0, 1.0),
    "kind": CategoricalDistribution(("a", "b", "c")),
}


def history_of(number: int, *, infeasible: bool = False) -> optuna.Study:
    """A study of so many trials: nine in ten complete, the others running or failed.

    One in five of the complete is infeasible if asked for.
    """
    chance = Random(number)
    study = optuna.create_study(directions=["minimize", "minimize"], sampler=RandomSampler(seed=0))
    for _ in range(number):
        study.add_trial(_trial(chance, infeasible=infeasible))
    return study


def _trial(chance: Random, *, infeasible: bool) -> FrozenTrial:
    state = chance.choices(
        (StudyState.COMPLETE, StudyState.RUNNING, StudyState.FAIL), (0.9, 0.05, 0.05)
    )[0]
    share = chance.random()
    params = {"rate": 10 ** -chance.uniform(0, 4), "share": share, "kind": chance.choice("abc")}
    violated = infeasible and state is StudyState.COMPLETE and chance.random() < 0.2
    cost = float(chance.randint(9, 12))
    values = [1.0 if violated else abs(share - 0.5) + chance.choice((0.1, 0.2, 0.3)) / cost, cost]
    return create_trial(
        state=state,
        params=params,
        distributions=SPACE,
        values=values if state is StudyState.COMPLETE else None,
        system_attrs={"constraints": [1.0]} if violated else {},
    )
