"""Replays cost what the curves say, and draw from the pool what is near."""

from collections.abc import Mapping
from dataclasses import replace
from math import inf
from pathlib import Path

import pytest
from optuna.distributions import IntDistribution
from optuna.samplers import RandomSampler

from search_spaces.methods.full import full
from search_spaces.problem import Problem
from search_spaces.recipe import Recipe, Schedule
from tests.benchmarks.search.pool import Pool
from tests.benchmarks.search.replay import Event, Leg, Setting, legs_of
from tests.benchmarks.search.score import Cost, HeldOut, Scorer
from tests.benchmarks.search.searchers import LADDER, SEARCHERS, configured
from tests.benchmarks.search.tables import Curve, CurveTable, Entry, Point, trunk_share
from tests.orchestrator.fake_trials import LEVELS, measurement, recipe
from trainables.measurement import Outcome

EVAL = 1e8
CHANCE = 0.9
RUNGS = range(len(LEVELS))
NUMBERS = {"number": IntDistribution(0, 100)}


def curve(errors: Mapping[int, float], *, trunk: float = 0.0) -> Curve:
    points = [
        Point(
            measurement=measurement(
                rung,
                error,
                train_flops=LEVELS[rung],
                eval_flops=(place + 1) * EVAL,
                train_seconds=LEVELS[rung] / 1e9,
            ),
            error_b=error + 0.01,
            test_error=error + 0.04,
        )
        for place, (rung, error) in enumerate(errors.items())
    ]
    end = replace(points[-1].measurement, trunk_flops=trunk * LEVELS[max(errors)])
    points[-1] = replace(points[-1], measurement=end)
    return Curve(points=tuple(points), outcome=Outcome.COMPLETE)


def table(recipes: int = 5) -> CurveTable:
    """Recipes of the full space; recipe n gains 0.1 a rung from 0.8 + 0.01 n at most."""
    problem = Problem(rungs=LEVELS, native_resolution=32, train_images=50_000, classes=10)
    return CurveTable(
        task="made",
        space=full,
        ranges={},
        problem=problem,
        entries=tuple(
            Entry(number=n, recipe=dense(n), params={"number": n}, distributions=NUMBERS)
            for n in range(recipes)
        ),
        curves={
            (n, rung, 0): curve({r: 0.8 + 0.01 * (n % 17) - 0.1 * r for r in range(rung + 1)})
            for n in range(recipes)
            for rung in RUNGS
        },
        chance_error=CHANCE,
    )


def dense(number: int) -> Recipe:
    return replace(
        recipe(number), method="full", settings={}, learning_rate=10.0 ** -(number / 8 + 1)
    )


def costs(legs: list[Leg]) -> list[tuple[int, float, float]]:
    return [
        (leg.point.measurement.rung if leg.point else -1, leg.train_flops, leg.eval_flops)
        for leg in legs
    ]


# costs


def test_a_new_trial_pays_every_rung() -> None:
    legs = legs_of(curve({0: 0.5, 2: 0.4}), after=None, trunk_flops=0.0)
    assert costs(legs) == [(0, 1e9, EVAL), (2, 3e9, EVAL)]


def test_a_paused_trial_pays_what_lies_ahead() -> None:
    legs = legs_of(curve({0: 0.5, 1: 0.45, 2: 0.4}), after=1, trunk_flops=0.0)
    assert costs(legs) == [(2, 2e9, EVAL)]


def test_a_raised_trial_pays_what_lies_above_the_trunk() -> None:
    legs = legs_of(curve({0: 0.5, 1: 0.45, 2: 0.4}), after=None, trunk_flops=1.6e9)
    assert costs(legs) == [(1, pytest.approx(0.4e9), EVAL), (2, 2e9, EVAL)]
    assert legs[0].seconds == pytest.approx(0.4 + EVAL / 3e10)


def test_a_raised_trial_that_has_nothing_left_to_do_measures_its_end() -> None:
    legs = legs_of(curve({0: 0.5, 1: 0.4}), after=None, trunk_flops=LEVELS[1])
    assert costs(legs) == [(1, 0.0, EVAL)]


def test_a_trial_that_diverges_pays_for_the_way_there() -> None:
    diverged = Curve(points=curve({0: 0.5}).points, outcome=Outcome.DIVERGED, unmeasured_flops=5e8)
    assert costs(legs_of(diverged, after=None, trunk_flops=0.0)) == [(0, 1e9, EVAL), (-1, 5e8, 0)]


def test_trunks_are_shared_as_the_schedule_lets() -> None:
    stable = replace(dense(0), schedule=Schedule.WARMUP_STABLE_DECAY)
    assert trunk_share(dense(0)) == 0.0
    assert trunk_share(stable) == 0.8
    assert trunk_share(replace(stable, schedule=Schedule.CONSTANT)) == 1.0
    assert trunk_share(replace(stable, trainable_depth=0.0)) == 0.0


# the pool


def test_a_draw_becomes_the_nearest_recipe_left() -> None:
    pool = Pool(table())
    assert nearest(pool, dense(3), rung=1) == 3
    pool.take(3, 1)
    assert nearest(pool, dense(3), rung=1) in (2, 4)
    assert nearest(pool, dense(3), rung=2) == 3


def test_a_pool_may_hand_a_recipe_out_once_for_all_rungs() -> None:
    pool = Pool(table(), once=True)
    pool.take(3, 1)
    assert nearest(pool, dense(3), rung=2) in (2, 4)


def test_a_snapped_draw_keeps_its_aim_and_takes_the_recipes_parameters() -> None:
    made = table()
    drawn = Pool(made).draw(full, {}, made.problem, RandomSampler(seed=0))
    entry = made.entry(drawn.recipe)
    assert drawn.params["number"] == entry.number
    assert LEVELS[drawn.params["target_rung"]] == drawn.recipe.target_flops
    assert set(drawn.distributions) == {"number", "target_rung"}


def test_an_emptied_pool_begins_anew() -> None:
    pool = Pool(table())
    for number in range(5):
        pool.take(number, 1)
    assert nearest(pool, dense(3), rung=1) == 3


def nearest(pool: Pool, wanted: Recipe, *, rung: int) -> int:
    return pool.nearest(wanted, rung).number


# whole replays


def test_a_replay_pays_for_every_measurement_and_ends_with_the_budget(tmp_path: Path) -> None:
    made, budget = table(), 2 * LEVELS[-1]
    events = replayed(made, tmp_path, budget=budget)
    assert events[-1].sweep_train_flops <= budget
    assert events[-1].sweep_flops == pytest.approx(
        events[-1].sweep_train_flops + len(events) * EVAL
    )
    trials = [event for event in events if event.rung == event.target_rung]
    whole = sum(LEVELS[event.target_rung] for event in trials)
    assert events[-1].sweep_train_flops == pytest.approx(whole)


def test_workers_share_the_time_but_not_the_bill(tmp_path: Path) -> None:
    made, budget = table(), 50 * LEVELS[-1]
    alone = replayed(made, tmp_path / "1", budget=budget)
    together = replayed(made, tmp_path / "4", budget=budget, workers=4)
    assert together[-1].sweep_flops == pytest.approx(alone[-1].sweep_flops, rel=0.05)
    assert together[-1].seconds < 0.5 * alone[-1].seconds


def replayed(made: CurveTable, folder: Path, *, budget: float, workers: int = 1) -> list[Event]:
    search = configured(sampler="random", scheduler="none")
    folder.mkdir(exist_ok=True)
    return search(Setting(table=made, seed=0, workers=workers, budget_flops=budget, folder=folder))


def test_every_variant_of_the_product_is_another_search(tmp_path: Path) -> None:
    """A part that is not connected shows itself by deciding as the variant without it."""
    found: dict[str, list[tuple[int, int]]] = {}
    for name in (*LADDER[1:-1], "worst_portfolio"):  # no other task has the portfolio's recipes
        folder = tmp_path / name
        folder.mkdir()
        setting = Setting(
            table=table(60), seed=0, workers=1, budget_flops=30 * LEVELS[-1], folder=folder
        )
        found[name] = [(event.number, event.rung) for event in SEARCHERS[name](setting)]
    assert len({tuple(events) for events in found.values()}) == len(found)


# scores


def test_the_score_is_that_of_a_sum_by_hand() -> None:
    scorer = Scorer(table(), on=HeldOut.B)
    # best known: recipe 0, 0.81 - 0.1 r on half B, so the gains are 0.09, 0.19, 0.29, 0.39
    assert scorer.best == pytest.approx([0.81, 0.71, 0.61, 0.51])
    events = [event(1e9, rung=0, error=0.8), event(9e9, rung=2, error=0.6)]
    score = scorer.score(events)
    assert score.cost == pytest.approx(9 / 8)
    assert score.share_at[1.0] == pytest.approx(4 * 0.09 / 0.96)
    assert score.end == pytest.approx((2 * 0.09 + 2 * 0.29) / 0.96)
    assert score.top_third == pytest.approx(0.29 / 0.39)
    assert score.regret == pytest.approx(0.1)
    assert score.runs_to[0.9] == inf
    assert score.measured == (1, 0, 1, 0)


def test_what_is_reported_is_the_best_on_half_a_scored_on_half_b() -> None:
    scorer = Scorer(table(), on=HeldOut.B)
    lucky = replace(event(2e9, rung=0, error=0.7), error_b=0.9)
    worse_later = event(3e9, rung=3, error=0.75)
    _, frontiers = scorer.steps([event(1e9, rung=0, error=0.8), lucky, worse_later])
    assert frontiers[0] == pytest.approx([0.81] * 4)
    assert frontiers[2] == pytest.approx([0.9] * 4)


def test_evaluation_counts_unless_it_is_not_to() -> None:
    events = [event(8e9, rung=3, error=0.5)]
    assert Scorer(table()).score(events).runs_to[0.9] == inf
    assert Scorer(table(), cost=Cost.ALL).steps(events)[0] == pytest.approx([1.0])
    assert Scorer(table(), cost=Cost.TRAIN).steps(events)[0] == pytest.approx([0.5])


def event(sweep_flops: float, *, rung: int, error: float) -> Event:
    return Event(
        sweep_flops=sweep_flops,
        sweep_train_flops=sweep_flops / 2,
        seconds=1.0,
        number=0,
        target_rung=rung,
        rung=rung,
        train_flops=LEVELS[rung],
        error_a=error,
        error_b=error + 0.01,
        test_error=error + 0.04,
    )
