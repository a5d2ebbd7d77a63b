"""Ranges: a search space's parameters narrowed or fixed by name, as a config writes them.

    ranges:
      pruning_ratio: [0.0, 0.5]               # a numeric parameter: low and high end
      learning_rate: {low: 1e-3, high: 1e-2}  # the same; an end left out stays the space's own
      criterion: [l1, l2]                     # a categorical parameter: the choices that stay
      batch_size: 32                          # any parameter: this value, no longer searched

The space knows nothing of it: it is handed a `RangedTrial` in place of the trial.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from decimal import ROUND_CEILING, ROUND_FLOOR, Decimal
from math import isfinite
from typing import Any

from search_spaces.space import Trial
from trainables.errors import UserError

Ranges = Mapping[str, Any]
"""Parameter name to its range as the config has it: a scalar, a list, or low and high."""


class InvalidRangeError(UserError):
    """A range makes no sense for its parameter; the message names value, rule and mend."""


class RangedTrial:
    """A trial that keeps what it is asked for within `ranges`; everything else is the trial's.

    Steps and log scales stay the space's. A parameter with one value left is not asked of the
    trial at all, so that it is no dimension of the search. A fixed value may lie off the grid.
    Raises `InvalidRangeError` when asked for a parameter whose range does not fit it.
    """

    def __init__(self, trial: Trial, ranges: Ranges, *, clip: bool = False) -> None:
        """`clip` cuts a range that reaches past the space's own instead of refusing it."""
        self._trial = trial
        self._ranges = ranges
        self._clip = clip
        self._names: dict[str, None] = {}

    @property
    def names(self) -> tuple[str, ...]:
        """Every parameter asked for so far, the fixed ones included, in order."""
        return tuple(self._names)

    def suggest_float(
        self, name: str, low: float, high: float, *, step: float | None = None, log: bool = False
    ) -> float:
        """Suggests as `Trial.suggest_float` does, within the range."""
        own = _Interval(low=low, high=high, step=step, log=log, whole=False)
        left = self._narrowed(name, own)
        if left.low == left.high:
            return left.low
        return self._trial.suggest_float(name, left.low, left.high, step=step, log=log)

    def suggest_int(
        self, name: str, low: int, high: int, *, step: int = 1, log: bool = False
    ) -> int:
        """Suggests as `Trial.suggest_int` does, within the range."""
        own = _Interval(low=low, high=high, step=step, log=log, whole=True)
        left = self._narrowed(name, own)
        if left.low == left.high:
            return int(left.low)
        return self._trial.suggest_int(name, int(left.low), int(left.high), step=step, log=log)

    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any:
        """Suggests as `Trial.suggest_categorical` does, among the choices that stay."""
        self._names[name] = None
        if name in self._ranges:
            choices = _kept(name, self._ranges[name], choices, clip=self._clip)
        if len(choices) == 1:
            return choices[0]
        return self._trial.suggest_categorical(name, choices)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._trial, name)

    def _narrowed(self, name: str, own: "_Interval") -> "_Interval":
        self._names[name] = None
        if name not in self._ranges:
            return own
        return _narrow(name, self._ranges[name], own, clip=self._clip)


@dataclass(frozen=True, kw_only=True)
class _Interval:
    """The values of a numeric parameter."""

    low: float
    high: float
    step: float | None
    log: bool
    whole: bool

    def __str__(self) -> str:
        return f"[{self.low:g}, {self.high:g}]"


def _narrow(name: str, wanted: Any, own: _Interval, *, clip: bool) -> _Interval:
    """The part of `own` that `wanted` leaves."""
    shown = f"space.ranges.{name}={wanted!r}"
    low, high = _ends(shown, wanted, own)
    if own.log and low <= 0:
        raise InvalidRangeError(
            f"{shown} must lie above 0, because {name} is searched on a log scale; "
            f"choose within {own}."
        )
    if low > high:
        raise InvalidRangeError(
            f"{shown} has a low end above its high end; write the smaller number first."
        )
    if clip:
        fixed = low == high
        inside = own.low <= low <= own.high if fixed else max(low, own.low) <= min(high, own.high)
        low, high = max(low, own.low), min(high, own.high)
    else:
        inside = own.low <= low and high <= own.high
    if not inside:
        raise InvalidRangeError(
            f"{shown} must lie within {own}, what the search space offers; "
            "a range can narrow a parameter, not widen it."
        )
    left = replace(own, low=low, high=high)
    return left if low == high else _on_grid(shown, left, own)


def _ends(shown: str, wanted: Any, own: _Interval) -> tuple[float, float]:
    """Low and high end of a numeric range as written; both the same for a fixed value."""
    if isinstance(wanted, Mapping):
        if not wanted or set(wanted) - {"low", "high"}:
            raise InvalidRangeError(f"{shown} must have the keys low and high, or one of them.")
        low = _number(shown, wanted["low"], own) if "low" in wanted else own.low
        high = _number(shown, wanted["high"], own) if "high" in wanted else own.high
        return low, high
    if isinstance(wanted, list | tuple):
        if len(wanted) != 2:
            raise InvalidRangeError(
                f"{shown} must be a low and a high end, because the parameter is a number; "
                "write [low, high], or one number to fix it."
            )
        return _number(shown, wanted[0], own), _number(shown, wanted[1], own)
    fixed = _number(shown, wanted, own)
    return fixed, fixed


def _number(shown: str, written: Any, own: _Interval) -> float:
    """The number that was written; YAML reads 1e-3 as text, so text that is a number counts."""
    kind = "whole number" if own.whole else "number"
    refusal = InvalidRangeError(
        f"{shown} must hold {kind}s, but {written!r} is none; choose within {own}."
    )
    if isinstance(written, bool) or not isinstance(written, int | float | str):
        raise refusal
    try:
        number = float(written)
    except ValueError:
        raise refusal from None
    if not isfinite(number) or (own.whole and not number.is_integer()):
        raise refusal
    return number


def _on_grid(shown: str, left: _Interval, own: _Interval) -> _Interval:
    """`left` with its ends moved inwards onto the grid that `own` spans from its low end."""
    if own.step is None:
        return left
    # decimal, as Optuna does it: in binary 0.15 is not three steps of 0.05
    start, step = Decimal(str(own.low)), Decimal(str(own.step))
    first = ((Decimal(str(left.low)) - start) / step).to_integral_value(ROUND_CEILING)
    last = ((Decimal(str(left.high)) - start) / step).to_integral_value(ROUND_FLOOR)
    if first > last:
        raise InvalidRangeError(
            f"{shown} holds no value of the grid {own.low:g}, {own.low + own.step:g}, ... "
            f"up to {own.high:g}; widen it, or write one number to fix it."
        )
    return replace(left, low=float(start + first * step), high=float(start + last * step))


def _kept(name: str, wanted: Any, choices: Sequence[Any], *, clip: bool) -> tuple[Any, ...]:
    """The choices that `wanted` leaves, in the space's own order."""
    shown, offered = f"space.ranges.{name}={wanted!r}", ", ".join(str(choice) for choice in choices)
    if isinstance(wanted, Mapping):
        raise InvalidRangeError(
            f"{shown} must be one choice or a list of choices, because the parameter is no "
            f"number; choose among {offered}."
        )
    written = tuple(wanted) if isinstance(wanted, list | tuple) else (wanted,)
    for choice in written:
        if not clip and not any(_same(choice, own) for own in choices):
            raise InvalidRangeError(
                f"{shown} names {choice!r}, which is not offered; choose among {offered}."
            )
    kept = tuple(own for own in choices if any(_same(choice, own) for choice in written))
    if not kept:
        raise InvalidRangeError(f"{shown} leaves no choice; choose among {offered}.")
    return kept


def _same(written: Any, own: Any) -> bool:
    """Equal, where `true` is not 1."""
    return bool(written == own) and isinstance(written, bool) == isinstance(own, bool)
