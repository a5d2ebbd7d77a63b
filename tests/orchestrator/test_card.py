"""The card tells what a model is and how to use it."""

import pytest
from markdown_it import MarkdownIt

from orchestrator.card import model_card, plain
from orchestrator.config import SweepConfig, validate
from tests.orchestrator.fake_trials import ledger_of


@pytest.mark.parametrize(
    ("model", "loading"),
    [
        ("resnet18", 'load_exported("path/of/this/folder")'),
        ("my_nets:make", "load_exported(\"path/of/this/folder\", factories=['my_nets:make'])"),
    ],
)
def test_the_card_says_what_it_is_what_it_reached_and_how_it_was_made(
    model: str, loading: str
) -> None:
    ledger = ledger_of({0: [0.5, 0.25]})
    ledger.tested("t0", 1, test_error=0.3)
    config = validate(
        SweepConfig,
        {
            "name": "flowers",
            "task": {"source": "oxford/flowers"},
            "backbone": {"model": model},
            "budget": {"trials": 1},
            "rungs": {"min_flops": 1e9, "max_flops": 2e9},
        },
        what="the test",
    )
    point = ledger.frontier.points[-1]
    card = model_card(point, config)
    assert card.startswith(f"# {model} on oxford/flowers\n")
    for row in (
        "| validation error | 25.0 % |",
        "| test error | 30.0 % |",
        "| training compute | 2 GFLOPs |",
        "| parameters | 1 k |",
        loading,
    ):
        assert row in card
    for name, value in point.recipe.items():
        assert f"| {name} | {value} |" in card


@pytest.mark.parametrize(
    "text",
    [
        "<img src=x onerror=alert(1)>",
        "</td><script>alert(1)</script>",
        "[click](javascript:alert(1))",
        "![seen](https://example.org/pixel.png)",
        "<https://example.org>",
        "https://example.org/x",
        "*bold* _italic_ __both__ `code` ~~gone~~ ***",
        "&lt;b&gt; &copy;",
        "a | b | c",
        "C:\\data\\*",
        "# no heading #",
        "[a]: https://example.org",
        "weight_decay_2",
    ],
)
def test_no_value_is_taken_for_markup(text: str) -> None:
    """A reader of Markdown, with tables and links made of addresses, shows each as it is."""
    reader = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"])
    for page in (f"# {plain(text)}", f"| a | b |\n|---|---|\n| {plain(text)} | x |"):
        inline = [token for token in reader.parse(page) if token.type == "inline"]
        shown = inline[0] if page.startswith("#") else inline[2]
        assert len(inline) in (1, 4)
        children = shown.children or []
        assert {child.type for child in children} <= {"text", "text_special"}
        assert "".join(child.content for child in children) == text


def test_a_value_stays_on_its_line() -> None:
    assert plain("a\n\n<b>\r\x07") == "a  &lt;b&gt;  "
