"""The contract of a method in a trial that goes on from a finished one towards less compute."""

from collections.abc import Callable
from pathlib import Path

import pytest

from search_spaces.recipe import Schedule
from tests.trainables.methods.method_examples import MethodExample, examples_of, trained_examples
from tests.trainables.raised_trials import (
    assert_same_checkpoint,
    assert_went_on,
    run_with_a_kill,
    unpaid,
)
from tests.trainables.recipes import advance, run, rung_uri
from trainables.finetune import Finetuning
from trainables.images.store import ImageStore
from trainables.method import Transfer


def raisable(example: MethodExample) -> MethodExample:
    """Returns the example with a rate that stays before it falls, if it falls."""
    if example.recipe().schedule is Schedule.CONSTANT:
        return example
    return example.but(schedule=Schedule.WARMUP_STABLE_DECAY)


def assert_no_fewer_of_more(transfer: Transfer) -> None:
    """Fails where a run of more steps shares fewer of its first steps."""
    shared = [transfer.shared_steps(total_steps=total) for total in range(1, 200)]
    assert shared == sorted(shared)
    assert all(0 <= steps <= total for total, steps in enumerate(shared, start=1))


@pytest.mark.parametrize(("method", "name"), trained_examples())
def test_a_raised_trial_is_its_recipe_run_alone(
    digits: ImageStore, source: Callable[[], ImageStore], tmp_path: Path, method: str, name: str
) -> None:
    """It is so to the last bit, though both trials are killed on the way, without shared steps."""
    example = raisable(examples_of(method).trained[name])
    low = example.but(target_flops=example.levels[-2])
    source_task = source if example.source_task else None

    def trial(resume_from: str | None = None, continue_from: str | None = None) -> Finetuning:
        return example.trial(
            digits,
            source_task=source_task,
            resume_from=resume_from,
            continue_from=continue_from,
        )

    assert_no_fewer_of_more(trial().transfer)
    *_, ended = run_with_a_kill(
        lambda uri: low.trial(digits, source_task=source_task, resume_from=uri),
        tmp_path / "lower",
    )
    lower = rung_uri(tmp_path / "lower", ended.rung)
    if ended.trunk_flops == 0:
        scratch, other = advance(trial(continue_from=lower)), advance(trial())
        assert scratch is not None
        assert other is not None
        assert unpaid(scratch) == unpaid(other)
        assert scratch.executed_flops >= other.executed_flops, "which finds its features"
        return
    alone = run(trial(), tmp_path / "alone")
    raised = run_with_a_kill(
        lambda uri: trial(resume_from=uri, continue_from=lower), tmp_path / "raised"
    )
    rung = f"rung-{ended.rung:03d}"
    assert_went_on(
        raised,
        lower=tmp_path / "lower" / rung,
        alone=alone,
        batch_size=example.recipe().batch_size,
    )
    last = f"rung-{alone[-1].rung:03d}"
    assert_same_checkpoint(tmp_path / "raised" / last, tmp_path / "alone" / last)
