"""Values given beforehand: what a parameter makes of them, and draws that use them."""

from collections.abc import Mapping
from functools import partial
from math import isnan
from typing import Any

import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.samplers import BaseSampler
from optuna.trial import FrozenTrial

from search_spaces.names import fields_of

_HAIR = 1e-9
"""Numbers are equal that differ by rounding."""


class NotOfferedError(ValueError):
    """A parameter has no such value; the message is the rule that the value breaks."""


class GivenDraws(BaseSampler):
    """Draws the given values where the space asks for them, and the rest from another sampler.

    A value is given by its parameter's name or, where that gives one field of the recipe, by the
    field's. One that a parameter does not offer is drawn like the rest.
    """

    def __init__(
        self, values: Mapping[str, Any], others: BaseSampler, *, clip: bool = False
    ) -> None:
        """`clip` takes the nearest number on offer in place of one that is refused."""
        self._values = values
        self._others = others
        self._clip = clip
        self.taken: dict[str, str] = {}
        """The parameters that were given, each with the name that its value was given by."""
        self.refused: dict[str, str] = {}
        """The names of values that are not on offer, each with the rule that its value breaks."""

    def infer_relative_search_space(
        self, study: optuna.Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        known = self._others.infer_relative_search_space(study, trial)
        return {name: known[name] for name in known if self._name_of(name) is None}

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        return self._others.sample_relative(study, trial, search_space)

    def sample_independent(
        self,
        study: optuna.Study,
        trial: FrozenTrial,
        param_name: str,
        param_distribution: BaseDistribution,
    ) -> Any:
        name = self._name_of(param_name)
        drawn = partial(
            self._others.sample_independent, study, trial, param_name, param_distribution
        )
        if name is None:
            return drawn()
        value = self._values[name]
        try:
            own = offered(param_distribution, value)
        except NotOfferedError as error:
            self.refused[name] = str(error)
            own = nearest(param_distribution, value) if self._clip else None
            if own is None:
                return drawn()
        self.taken[param_name] = name
        return own

    def _name_of(self, parameter: str) -> str | None:
        """The name by which the parameter's value is given, if it is."""
        if parameter in self._values:
            return parameter
        fields = fields_of(parameter)
        return fields[0] if len(fields) == 1 and fields[0] in self._values else None


def offered(distribution: BaseDistribution, value: Any) -> Any:
    """Returns the parameter's own value that `value` means.

    Raises `NotOfferedError`, whose message continues "NAME=VALUE".
    """
    if isinstance(distribution, CategoricalDistribution):
        for choice in distribution.choices:
            if choice == value and isinstance(choice, bool) == isinstance(value, bool):
                return choice
        choices = ", ".join(map(str, distribution.choices))
        raise NotOfferedError(f"is not offered; choose among {choices}")
    assert isinstance(distribution, FloatDistribution | IntDistribution)
    shown = f"[{distribution.low:g}, {distribution.high:g}]"
    near = nearest(distribution, value)
    if near is None:
        raise NotOfferedError(f"must be a number; choose within {shown}")
    if not distribution.low <= value <= distribution.high:
        raise NotOfferedError(f"must lie within {shown}, what the search space offers")
    if abs(near - value) > _HAIR * abs(value):
        raise NotOfferedError(f"is no value of the search space; the nearest one is {near:g}")
    return near


def nearest(distribution: BaseDistribution, value: Any) -> float | None:
    """Returns the number on offer that is nearest to the value; None where one is no number."""
    if not isinstance(distribution, FloatDistribution | IntDistribution):
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or isnan(value):
        return None
    low, step = distribution.low, distribution.step
    near = min(max(value, low), distribution.high)
    if step is not None:
        last = round((distribution.high - low) / step)
        on_grid = low + min(round((near - low) / step), last) * step
        near = near if abs(on_grid - near) <= _HAIR * abs(near) else on_grid
    return int(near) if isinstance(distribution, IntDistribution) else float(near)
