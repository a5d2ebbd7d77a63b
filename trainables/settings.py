"""A method's settings: typed, within their ranges, and nothing else among them.

With them stands the check of the one common field that many methods restrict, `trainable_depth`.
"""

from collections.abc import Mapping
from typing import Self

from pydantic import BaseModel, ConfigDict, ValidationError

from search_spaces.recipe import Recipe, Setting
from trainables.errors import InputError


class Settings(BaseModel):
    """The base of a method's settings; a method declares its own by deriving from it.

    No number is read from text, and none is cut to fit.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    @classmethod
    def read(cls, settings: Mapping[str, Setting]) -> Self:
        """Checks and returns the settings.

        Raises `InputError`, one sentence on the first thing wrong.
        """
        try:
            return cls.model_validate(dict(settings))
        except ValidationError as error:
            first = error.errors()[0]
        known = ", ".join(cls.model_fields) or "none"
        place = ".".join(str(part) for part in first["loc"])
        match first["type"]:
            case "missing":
                raise InputError(f"{place} is missing; the method's settings are {known}.")
            case "extra_forbidden":
                raise InputError(f"{place} is no setting of the method, which has {known}.")
            case "value_error":
                raise InputError(f"{first['ctx']['error']}.")
        rule = first["msg"].removeprefix("Input should be ")
        raise InputError(f"{place}={first['input']!r} must be {rule}.")


def check_depth(recipe: Recipe, *, low: float, high: float, instead: str) -> None:
    """Raises `InputError` where `trainable_depth` is not in [low, high]; `instead` is the mend."""
    depth = recipe.trainable_depth
    if not low <= depth <= high:
        rule = f"be {low:g}" if low == high else f"lie in [{low:g}, {high:g}]"
        raise InputError(f"{recipe.method} with trainable_depth={depth:g} must {rule}; {instead}.")
