"""An excerpt is bounded, keeps the best and the newest, and is fair to the others."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st
from optuna.trial import FrozenTrial, create_trial
from optuna.trial import TrialState as StudyState

from orchestrator.search.excerpt import LONGEST, best, excerpt, study_of
from tests.orchestrator.search.histories import history_of

VALUES = st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), max_size=30)


def kind_of(trial: FrozenTrial) -> str:
    return "infeasible" if trial.constraints else trial.state.name


def test_a_short_history_is_seen_whole() -> None:
    trials = history_of(LONGEST).get_trials()
    assert excerpt(trials) == trials


def test_failed_trials_are_left_out_first() -> None:
    trials = history_of(LONGEST + 3).get_trials()
    left = [trial for trial in trials if trial.state is not StudyState.FAIL]
    assert len(left) <= LONGEST
    assert excerpt(trials) == left


def test_a_long_history_is_seen_in_its_best_its_newest_and_a_fair_sample() -> None:
    trials = history_of(3000, infeasible=True).get_trials()
    seen = excerpt(trials)
    assert len(seen) == LONGEST
    numbers = [trial.number for trial in seen]
    assert numbers == sorted(numbers)
    assert {trial.number for trial in best(trials, LONGEST // 8)} <= set(numbers)
    alive = [trial for trial in trials if trial.state is not StudyState.FAIL]
    assert numbers[-LONGEST // 8 :] == [trial.number for trial in alive[-LONGEST // 8 :]]
    of_all, of_seen = Counter(map(kind_of, alive)), Counter(map(kind_of, seen))
    for kind, count in of_all.items():
        assert of_seen[kind] / len(seen) == pytest.approx(count / len(alive), abs=0.15)


def test_a_history_without_anything_complete_is_cut_too() -> None:
    trials = [create_trial(state=StudyState.RUNNING) for _ in range(LONGEST + 50)]
    for number, trial in enumerate(trials):
        trial.number = number
    assert len(excerpt(trials)) == LONGEST


@given(values=VALUES, count=st.integers(1, 10))
def test_the_best_are_taken_front_after_front(values: list[tuple[int, int]], count: int) -> None:
    trials = [create_trial(values=[float(v) for v in pair]) for pair in values]
    for number, trial in enumerate(trials):
        trial.number = number
    chosen = [values[trial.number] for trial in best(trials, count)]
    assert len(chosen) == min(count, len(values))
    fronts = _fronts(values)
    taken = Counter(chosen)
    whole = 0
    for front in fronts:
        if whole + len(front) <= len(chosen):
            assert not Counter(front) - taken
        else:
            assert sum((Counter(front) & taken).values()) >= len(chosen) - whole
            break
        whole += len(front)


def _fronts(values: list[tuple[int, int]]) -> list[list[tuple[int, int]]]:
    """The fronts by their definition, where an equal point is one front further."""
    left, fronts = list(values), []
    while left:
        front = {a for a in left if not any(b != a and b[0] <= a[0] and b[1] <= a[1] for b in left)}
        fronts.append(sorted(front))
        for point in front:
            left.remove(point)
    return fronts


def test_infeasible_trials_are_never_among_the_best() -> None:
    trials = history_of(300, infeasible=True).get_trials()
    assert not any(trial.constraints for trial in best(trials, 300))


def test_a_crowded_front_keeps_its_ends() -> None:
    trials = [create_trial(values=[1.0 - 0.001 * i, 1.0 + 0.001 * i]) for i in range(50)]
    trials += [create_trial(values=[0.0, 9.0]), create_trial(values=[9.0, 0.0])]
    for number, trial in enumerate(trials):
        trial.number = number
    assert {50, 51} <= {trial.number for trial in best(trials, 5)}


def test_a_throw_away_study_shows_the_trials_themselves() -> None:
    history = history_of(20)
    trials = history.get_trials(deepcopy=False)
    study = study_of(trials, history.directions)
    assert all(a is b for a, b in zip(study.get_trials(deepcopy=False), trials, strict=True))
    states = (StudyState.COMPLETE,)
    assert len(study.get_trials(states=states)) == len(history.get_trials(states=states))
