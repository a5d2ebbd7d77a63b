"""The doctor's forecast: what a config's budget buys, at the pace of its own trials here."""

from pathlib import Path
from typing import Any

import pytest
import torch

from orchestrator.config import SweepConfig, validate
from orchestrator.doctor import Examination
from orchestrator.inputs import SweepInputs
from orchestrator.pace import measure_pace
from orchestrator.search.rehearsal import Outlook
from trainables.errors import InputError

CONFIG: dict[str, Any] = {
    "name": "forecast",
    "task": {"source": "digits", "resolution": 16, "mirror": False, "max_train_images": 100},
    "backbone": {"model": "test_resnet"},
    "budget": {"trials": 2},
    "rungs": {"min_flops": 2e9, "max_flops": 1e10},
    "resources": {"concurrent": 3},
}


def inputs(folder: Path, **sections: Any) -> SweepInputs:
    storage = {"folder": str(folder / "sweep"), "cache": str(folder / "cache")}
    values = {**CONFIG, "storage": storage, **sections}
    return SweepInputs(validate(SweepConfig, values, what="the test"))


def outlook(folder: Path, **sections: Any) -> Outlook:
    return Examination(inputs(folder, **sections)).outlook()


def test_flops_are_bought_and_no_more(tmp_path: Path) -> None:
    bought = outlook(tmp_path, budget={"sweep_flops": 2e11})
    assert 1.5e11 < bought.total.train_flops <= 2e11
    assert bought.total.eval_flops > 0
    assert bought.levels == inputs(tmp_path).problem.rungs
    assert all(rung.trials for rung in bought.rungs), "every rung gets its share"
    assert bought.total.confirming > 0, "and the frontier is confirmed, as in the sweep"


def test_trials_are_bought_and_no_more(tmp_path: Path) -> None:
    bought = outlook(tmp_path, budget={"trials": 30}, search={"confirm": 0})
    assert bought.total.trials == 30
    assert bought.total.confirming == 0


def test_time_is_bought_at_this_machines_pace_for_all_workers(tmp_path: Path) -> None:
    bought = outlook(tmp_path, budget={"wall_time": "1m"})
    assert bought.workers == 3
    assert bought.wall_seconds >= 60
    executed = bought.total.train_flops + bought.total.eval_flops
    assert bought.total.worker_seconds >= executed / bought.flops_per_second


def test_recipes_of_the_start_are_rehearsed_too(tmp_path: Path) -> None:
    bought = outlook(
        tmp_path,
        budget={"trials": 5, "sweep_flops": 2e11},
        space={"start": [{"pruning_ratio": 0.5}] * 5},
        search={"scheduler": "none", "confirm": 0},
    )
    at_lowest, *others = (rung.begun for rung in bought.rungs)
    assert (at_lowest, sum(others)) == (5, 0), "they keep to a tenth of the budget"


def test_a_budget_that_buys_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"sweep_flops=1e\+06 buys no trial.*begins with 2e\+09"):
        outlook(tmp_path, budget={"sweep_flops": 1e6})


def test_a_pace_is_measured_with_the_threads_of_a_trial(tmp_path: Path) -> None:
    threads = torch.get_num_threads()
    pace = measure_pace(inputs(tmp_path))
    assert pace.flops_per_second > 0
    assert pace.eval_flops > 0
    assert pace.set_up_seconds > 0
    assert torch.get_num_threads() == threads


def test_recipes_that_train_the_head_alone_have_a_pace(tmp_path: Path) -> None:
    head_only = {"function": "linear_probe", "ranges": {"augmentation": 0}}
    assert measure_pace(inputs(tmp_path, space=head_only)).flops_per_second > 0
    bought = outlook(tmp_path, space=head_only, budget={"sweep_flops": 1e11})
    assert bought.total.trials > 0


def test_recipes_of_which_none_takes_a_step_have_no_pace(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"None of 8 recipes .* raise rungs\.max_flops"):
        measure_pace(inputs(tmp_path, rungs={"min_flops": 1e3, "max_flops": 1e4}))
