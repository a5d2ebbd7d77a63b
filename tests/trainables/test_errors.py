"""Errors for the user: one base, one sentence, keys as the user writes them."""

import pickle

import pytest

from analysis.report import MissingSweepError
from analysis.table import InvalidTableError, MissingTableError
from search_spaces.ranges import InvalidRangeError
from search_spaces.recipe import InvalidRecipeError
from search_spaces.space import InvalidSpaceError
from trainables.errors import InfeasibleError, InputError, Key, UserError, first_line, keys_of

REFUSAL = InputError("Set ", Key("label_column"), ", or fewer ", Key("classes"), ".")


def test_whatever_the_user_can_mend_has_one_base() -> None:
    for kind in (
        *(InputError, InvalidRangeError, InvalidRecipeError, InvalidSpaceError),
        *(InvalidTableError, MissingSweepError, MissingTableError),
    ):
        assert issubclass(kind, UserError)
    assert not issubclass(InfeasibleError, UserError)


def test_keys_are_named_by_whoever_knows_their_section() -> None:
    assert str(REFUSAL) == "Set label_column, or fewer classes."
    with pytest.raises(InputError) as caught, keys_of("source_task"):
        raise REFUSAL
    assert str(caught.value) == "Set source_task.label_column, or fewer source_task.classes."
    assert str(REFUSAL.under("task").under("stream")) == (
        "Set stream.task.label_column, or fewer stream.task.classes."
    )


def test_text_is_never_taken_for_a_key() -> None:
    assert str(InputError("The folder classes is empty.").under("task")) == (
        "The folder classes is empty."
    )


def test_an_error_that_comes_from_another_process_still_knows_its_keys() -> None:
    sent = pickle.loads(pickle.dumps(REFUSAL))
    assert str(sent.under("task")) == str(REFUSAL.under("task"))


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (OSError(2, "No such file", "x"), "[Errno 2] No such file: 'x'"),
        (ValueError("\n  the first.\nthe second."), "the first"),
        (TimeoutError(), "TimeoutError"),
    ],
)
def test_the_first_line_of_an_error(error: Exception, line: str) -> None:
    assert first_line(error) == line
