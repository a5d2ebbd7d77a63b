"""A rehearsal tells what a budget buys by the driver's own decisions."""

from pathlib import Path

import pytest

from orchestrator.search.config import Budget
from orchestrator.search.rehearsal import Outlook
from tests.orchestrator.search.asked_trials import RUNGS
from tests.orchestrator.search.rehearsals import PACE, rehearsal


def outlook(folder: Path, budget: Budget, *, workers: int = 3) -> Outlook:
    return rehearsal(folder, budget=budget, workers=workers, sampler="random").run()


def test_flops_are_bought_and_no_more(tmp_path: Path) -> None:
    flops = 20 * RUNGS[-1]
    bought = outlook(tmp_path, Budget(sweep_flops=flops))
    assert 0.8 * flops < bought.total.train_flops <= flops
    assert bought.whole
    assert all(rung.trials for rung in bought.rungs), "every rung gets its share"


def test_trials_are_bought_and_no_more(tmp_path: Path) -> None:
    bought = outlook(tmp_path, Budget(trials=40))
    assert bought.total.trials == 40
    assert bought.total.raised > 0


def test_time_is_bought_and_hardly_more(tmp_path: Path) -> None:
    bought = outlook(tmp_path, Budget(wall_time=600), workers=2)
    longest = (RUNGS[-1] + PACE.eval_flops) / PACE.flops_per_second + PACE.set_up_seconds
    assert 600 - longest <= bought.wall_seconds <= 600 + longest
    assert bought.total.worker_seconds == pytest.approx(2 * bought.wall_seconds, rel=0.1)


def test_more_workers_take_less_time(tmp_path: Path) -> None:
    budget = Budget(sweep_flops=20 * RUNGS[-1])
    alone, many = (outlook(tmp_path / str(workers), budget, workers=workers) for workers in (1, 4))
    assert many.wall_seconds < 0.5 * alone.wall_seconds


@pytest.mark.parametrize("generation", [None, 4])
@pytest.mark.parametrize("scheduler", ["race", "halving", "none"])
def test_any_scheduler_spends_what_there_is(
    tmp_path: Path, scheduler: str, generation: int | None
) -> None:
    flops = 10 * RUNGS[-1]
    swept = rehearsal(
        tmp_path,
        budget=Budget(sweep_flops=flops),
        sampler="random",
        scheduler=scheduler,
        generation=generation,
    )
    bought = swept.run()
    assert bought.whole
    assert 0.7 * flops < bought.total.train_flops <= flops
    assert bought.total.train_flops == pytest.approx(swept.ledger.sweep_flops)
    assert bought.total.trials == len(swept.ledger)


def test_the_frontier_is_confirmed_with_the_share_kept_for_it(tmp_path: Path) -> None:
    flops = 20 * RUNGS[-1]
    swept = rehearsal(tmp_path, budget=Budget(sweep_flops=flops), confirm=0.1, sampler="random")
    bought = swept.run()
    trials = swept.ledger.trials()
    confirming = [trial for trial in trials if trial.confirms is not None]
    assert bought.total.confirming == len(confirming) > 0
    assert bought.total.raised == sum(trial.continues is not None for trial in trials)
    assert bought.total.trials == len(trials)
    for trial in confirming:
        assert trial.confirms is not None
        confirmed = swept.ledger.trial(trial.confirms)
        assert trial.measurements[-1].val_error == confirmed.measurements[-1].val_error


def test_a_budget_below_every_rung_buys_nothing(tmp_path: Path) -> None:
    assert outlook(tmp_path, Budget(sweep_flops=RUNGS[0] / 2)).total.trials == 0


def test_an_endless_budget_is_rehearsed_in_part(tmp_path: Path) -> None:
    swept = rehearsal(tmp_path, budget=Budget(sweep_flops=1e6 * RUNGS[-1]), sampler="random")
    bought = swept.run(most_trials=60)
    assert not bought.whole
    assert bought.total.trials <= 60 + bought.workers
