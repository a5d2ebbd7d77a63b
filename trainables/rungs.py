"""Rungs: the levels of training compute at which every trial is measured."""

import math
from dataclasses import dataclass

from trainables.errors import InfeasibleError


@dataclass(frozen=True, kw_only=True)
class Stop:
    """A point at which a trial is measured."""

    rung: int
    """Index of the level."""
    steps: int
    """Training steps taken by then, cumulative."""
    train_flops: float
    """FLOPs that the recipe has spent by then: at most the rung's level."""


def rung_levels(*, min_flops: float, max_flops: float, per_decade: int) -> tuple[float, ...]:
    """Ascending levels in FLOPs: `min_flops` x 10^(k / per_decade), up to `max_flops`.

    Anchored at `min_flops`, so that raising `max_flops` only adds levels.
    """
    if not 0 < min_flops <= max_flops:
        raise ValueError(
            f"rungs.min_flops={min_flops:g} must be positive and at most max_flops={max_flops:g}."
        )
    if per_decade < 1:
        raise ValueError(f"rungs.per_decade={per_decade} must be at least 1.")
    # A hair of room, so that a level that is max_flops by arithmetic is not lost to rounding.
    count = math.floor(per_decade * math.log10(max_flops / min_flops) + 1e-6) + 1
    return tuple(min_flops * 10 ** (k / per_decade) for k in range(count))


def reachable_levels(
    levels: tuple[float, ...], *, target_flops: float, spent_flops: float, needs_flops: float = 0.0
) -> tuple[float, ...]:
    """The levels at or under `target_flops`; raises `InfeasibleError` when there is none.

    `needs_flops` is what the first step needs, as far as is known.
    """
    reachable = tuple(level for level in levels if level <= target_flops * (1 + 1e-9))
    if not reachable:
        raise InfeasibleError(
            f"no rung lies at or under the {target_flops:.3g} FLOPs aimed at; the lowest is "
            f"{levels[0]:.3g}",
            spent_flops=spent_flops,
            needs_flops=max(levels[0], needs_flops),
        )
    return reachable


def plan_stops(
    *,
    levels: tuple[float, ...],
    target_flops: float,
    setup_flops: float,
    step_flops: float,
    settling_flops: float = 0.0,
    max_steps: int | None = None,
) -> tuple[Stop, ...]:
    """The stops of a trial, known before its first step.

    At level L a trial has taken floor((L - setup) / step) steps: it is measured at the most
    compute that does not exceed the level, and after `max_steps` at the latest. Levels that allow
    no step, or none more than the level below, are left out. `settling_flops` makes the model ready
    to be measured: a recipe that ends at a level has spent them once. Raises `InfeasibleError` when
    not even one step fits under the target; the preparing is spent by then.
    """
    fixed_flops = setup_flops + settling_flops
    needs_flops = fixed_flops + step_flops
    reachable = reachable_levels(
        levels, target_flops=target_flops, spent_flops=setup_flops, needs_flops=needs_flops
    )
    stops: list[Stop] = []
    for rung, level in enumerate(reachable):
        steps = math.floor((level - fixed_flops) / step_flops)
        if fixed_flops + steps * step_flops > level:  # by rounding
            steps -= 1
        if max_steps is not None:
            steps = min(steps, max_steps)
        if steps > (stops[-1].steps if stops else 0):
            spent = fixed_flops + steps * step_flops
            stops.append(Stop(rung=rung, steps=steps, train_flops=spent))
    if not stops:
        raise InfeasibleError(
            f"preparing costs {fixed_flops:.3g} FLOPs and one step {step_flops:.3g}, more together "
            f"than the {reachable[-1]:.3g} of the highest rung aimed at",
            spent_flops=setup_flops,
            needs_flops=needs_flops,
        )
    return tuple(stops)
