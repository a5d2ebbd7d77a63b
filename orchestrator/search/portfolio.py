"""Portfolios: the few recipes of earlier tasks that together would have served them best."""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from math import inf, isclose
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from search_spaces.finetuning import SIDE
from trainables.errors import InputError

SIZE = 12
"""Recipes of a portfolio that a sweep tries."""
SIZE_OF_METHOD = 6
"""Recipes of each method that a portfolio file holds, for sweeps of that method alone."""
SHIPPED = Path(__file__).with_name("portfolio.json")
"""The portfolio of the built-in spaces."""
OF_THE_TASK = frozenset({SIDE, "class_weighting"})
"""Values that go by the task: one recipe may have others on another task."""
PLACES = 13
"""Places of the compute grid, from its lowest level to its highest, at which recipes compare."""

Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class KnownRecipe:
    """A recipe of an earlier sweep, and what it was measured to be worth there."""

    sweep: str
    """The sweep's name."""
    trial: str
    """The trial, or one of the trials, that ran it."""
    method: str
    """The transfer method."""
    values: dict[str, Any]
    """Values by parameter, and by field where the sweep's space had no such parameter."""
    side: float | None
    """The side of its images as a share of the largest that its space had; None: not known."""
    errors: tuple[float | None, ...]
    """The lowest validation error measured at each rung, 0-1; None where it was not measured."""

    def is_like(self, other: "KnownRecipe") -> bool:
        """Whether it is the other recipe but for rounding and what goes by the task."""
        names = (self.values.keys() | other.values.keys()) - OF_THE_TASK
        return self.method == other.method and all(
            _is_near(self.values.get(name), other.values.get(name)) for name in names
        )

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "KnownRecipe":
        """Returns the recipe whose `asdict` gave `values`; raises `TypeError` for any other."""
        return cls(**{**values, "errors": tuple(values["errors"])})


@dataclass(frozen=True, kw_only=True)
class EarlierSweep:
    """The recipes of an earlier sweep over one grid of compute."""

    name: str
    recipes: Sequence[KnownRecipe]

    @cached_property
    def gains(self) -> Floats:
        """The worth of each recipe at each place of the grid: [recipes, `PLACES`].

        It is the share of the sweep's recipes that it beats there with what it had reached for that
        compute or less, so that sweeps compare whose errors differ; 0 before it was measured.
        """
        reached = np.array(
            [[inf if error is None else error for error in r.errors] for r in self.recipes]
        )
        reached = np.minimum.accumulate(reached, axis=1)
        better = np.stack([np.searchsorted(np.sort(at), at) for at in reached.T], axis=1)
        gains = np.where(np.isfinite(reached), 1 - better / len(reached), 0.0)
        rungs = np.arange(PLACES) * reached.shape[1] // PLACES
        at_places: Floats = gains[:, rungs]
        return at_places


def choose(
    sweeps: Sequence[EarlierSweep],
    size: int,
    *,
    fits: Callable[[KnownRecipe], bool] = lambda recipe: True,
) -> list[KnownRecipe]:
    """Returns up to `size` recipes that together cover the sweeps' frontiers, from the best.

    Each next one is that which adds most to the gain of the best chosen one, summed over the places
    of the grid and the sweeps (greedy, which is within 1 - 1/e of the best choice because this sum
    is submodular: Nemhauser, Wolsey & Fisher 1978). Where all is covered, what is left covers it
    once more, because what leads by luck may have a runner-up that deserves it. One that does not
    fit, or is like a chosen one, is passed over.
    """
    recipes = [recipe for sweep in sweeps for recipe in sweep.recipes]
    owners = np.repeat(np.arange(len(sweeps)), [len(sweep.recipes) for sweep in sweeps])
    gains = np.concatenate([sweep.gains for sweep in sweeps])
    covered = np.zeros((len(sweeps), PLACES))
    left = np.ones(len(recipes), dtype=bool)
    chosen: list[KnownRecipe] = []
    while len(chosen) < size:
        added = np.where(left, np.maximum(0.0, gains - covered[owners]).sum(axis=1), 0.0)
        if not added.any():
            if not covered.any():
                break  # what is left was worth nothing
            covered[:] = 0.0
            continue
        best = int(np.argmax(added))
        left[best] = False
        if any(recipes[best].is_like(other) for other in chosen) or not fits(recipes[best]):
            continue
        chosen.append(recipes[best])
        covered[owners[best]] = np.maximum(covered[owners[best]], gains[best])
    return chosen


def portfolio_of(sweeps: Sequence[EarlierSweep], *, size: int = SIZE) -> list[KnownRecipe]:
    """Returns `size` recipes for spaces in which methods compete, then more of each method."""
    chosen = choose(sweeps, size)
    for method in sorted({recipe.method for sweep in sweeps for recipe in sweep.recipes}):
        alike = [_of_method(sweep, method) for sweep in sweeps]
        more = choose([sweep for sweep in alike if sweep.recipes], SIZE_OF_METHOD)
        chosen += [r for r in more if not any(r.is_like(other) for other in chosen)]
    return chosen


def write(path: Path, recipes: Iterable[KnownRecipe]) -> None:
    """Writes a portfolio file, JSON with a line for each recipe."""
    lines = ",\n".join(json.dumps(asdict(recipe)) for recipe in recipes)
    path.write_text(f'{{"recipes": [\n{lines}\n]}}\n', encoding="utf-8")


def read(path: Path) -> list[KnownRecipe]:
    """Returns the recipes of a portfolio file; raises `InputError` where it is none."""
    try:
        written = json.loads(path.read_text(encoding="utf-8"))["recipes"]
        return [KnownRecipe.from_dict(values) for values in written]
    except OSError as error:
        reason = error.strerror
    except (ValueError, KeyError, TypeError, AttributeError):
        reason = "it is no portfolio"
    raise InputError(
        f"search.portfolio={str(path)!r} cannot be read ({reason}); give auto, none, or a file "
        "that `prunetune portfolio` wrote."
    )


def _is_near(mine: Any, other: Any) -> bool:
    """Equal or, for fractions, within a tenth of the larger."""
    if isinstance(mine, float) and isinstance(other, float):
        return isclose(mine, other, rel_tol=0.1)
    return bool(mine == other)


def _of_method(sweep: EarlierSweep, method: str) -> EarlierSweep:
    alike = [recipe for recipe in sweep.recipes if recipe.method == method]
    return EarlierSweep(name=sweep.name, recipes=alike)
