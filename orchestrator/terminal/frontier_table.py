"""The frontier as a table for a terminal, as wide as there is room."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields

from rich.console import Console, ConsoleOptions, RenderResult
from rich.measure import Measurement as Width
from rich.table import Table
from rich.text import Text

from analysis import units
from analysis.frontier import Frontier, FrontierPoint
from search_spaces.recipe import Optimizer, Recipe, Setting

_SHARED = frozenset(field.name for field in fields(Recipe))
_RATES = {Optimizer.SGD: "lr", Optimizer.ADAMW: "adamw", Optimizer.SCHEDULE_FREE_ADAMW: "free"}
"""The word before a learning rate, which says little without its optimiser."""


@dataclass(frozen=True, kw_only=True)
class _Column:
    """One number of a point."""

    heading: str
    cell: Callable[[FrontierPoint], str]


_TRIAL = _Column(heading="trial\n@ rung", cell=lambda p: f"{p.number} @ {p.rung}")
_TRAINING = _Column(heading="train\nFLOPs", cell=lambda p: units.count(p.train_flops))
_VALIDATION = _Column(heading="val\nerror", cell=lambda p: units.percent(p.val_error))
_EXPECTED = _Column(heading="expected\nerror", cell=lambda p: _known_percent(p.expected_error))
_TEST = _Column(heading="test\nerror", cell=lambda p: _known_percent(p.test_error))
_INFERENCE = _Column(
    heading="inference\nFLOPs", cell=lambda p: units.count(p.measurement.inference_flops)
)
_PARAMETERS = _Column(heading="para-\nmeters", cell=lambda p: units.count(p.measurement.params))


class FrontierTable:
    """Rich's rendering of a frontier, ascending in compute; a line a point.

    Where the recipe does not fit next to all the numbers, size and inference compute, which the
    report has too, are left out; where it does not fit even then, it goes on below itself.
    """

    def __init__(self, frontier: Frontier, *, newest: int | None = None) -> None:
        """Shows only the last `newest` points if given."""
        self._points = frontier.points[-newest:] if newest else frontier.points
        self._confirmed, self._all = frontier.confirmed, len(frontier.points)
        self._several_methods = len({point.recipe["method"] for point in self._points}) > 1

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        results = (_TRIAL, _TRAINING, _VALIDATION, *self._expected, *self._tested)
        unbounded = options.update(max_width=10_000)
        for extra in ((_PARAMETERS, _INFERENCE), (_PARAMETERS,), ()):
            table = self._table(*results, *extra)
            if Width.get(console, unbounded, table).maximum <= options.max_width:
                break
        yield table

    @property
    def _expected(self) -> tuple[_Column, ...]:
        """The column of expected errors, of which sweeps of earlier versions know nothing."""
        known = any(point.expected_error is not None for point in self._points)
        return (_EXPECTED,) if known else ()

    @property
    def _tested(self) -> tuple[_Column, ...]:
        """The column of test errors, which a running sweep lacks: they are measured at its end."""
        known = any(point.test_error is not None for point in self._points)
        return (_TEST,) if known else ()

    @property
    def _title(self) -> str:
        confirmed = f", {self._confirmed} of {self._all} points confirmed" if self._expected else ""
        return f"Compute-optimal frontier{confirmed}"

    def _table(self, *columns: _Column) -> Table:
        table = Table(
            title=self._title,
            title_style="bold",
            title_justify="left",
            header_style="dim",
            box=None,
            pad_edge=False,
            padding=(0, 2, 0, 0),
        )
        for column in columns:
            written = [*column.heading.split("\n"), *map(column.cell, self._points)]
            table.add_column(column.heading, justify="right", min_width=max(map(len, written)))
        table.add_column("\nrecipe")
        for point in self._points:
            table.add_row(*(column.cell(point) for column in columns), self._recipe(point))
        return table

    def _recipe(self, point: FrontierPoint) -> Text:
        recipe = short_recipe(point.recipe)
        return Text(f"{point.recipe['method']}: {recipe}" if self._several_methods else recipe)


def short_recipe(recipe: Mapping[str, Setting]) -> str:
    """Shortens a recipe to what sets it apart: "r0.5 l1/layer/inner · lr 0.06 d0.75 16px b16".

    The method's own settings come first: numbers by the initial of their name's last word, words
    as they are, switches by their initials where they are on. The most important shared settings
    follow.
    """
    numbers, words = [], []
    for name, value in recipe.items():
        if name in _SHARED:
            continue
        if isinstance(value, str):
            words.append(value)
        elif isinstance(value, bool):
            words += ["".join(word[0] for word in name.split("_"))] if value else []
        else:
            numbers.append(f"{name.rpartition('_')[2][0]}{value:.3g}")
    own = " ".join([*numbers, "/".join(words)]).strip()
    rate = _RATES[Optimizer(str(recipe.get("optimizer", Optimizer.SGD)))]  # older ones name none
    shared = (
        f"{rate} {recipe['learning_rate']:.2g} d{recipe['trainable_depth']:.2g} "
        f"{recipe['resolution']}px b{recipe['batch_size']}"
    )
    return f"{own} · {shared}" if own else shared


def _known_percent(share: float | None) -> str:
    return "" if share is None else units.percent(share)
