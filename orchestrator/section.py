"""The parts that a config is made of, for those that own one."""

import re
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, PositiveFloat

_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def _seconds(value: Any) -> Any:
    """Turns `90`, `90s`, `20m`, `1h30m` or `2d` into seconds."""
    if not isinstance(value, str):
        return value
    text = value.replace(" ", "")
    if not re.fullmatch(r"(\d+(\.\d+)?[smhd])+", text):
        raise ValueError("must be seconds, or a duration such as 90s, 20m or 1h30m")
    return sum(float(n) * _SECONDS[u] for n, u in re.findall(r"([\d.]+)([smhd])", text))


Seconds = Annotated[PositiveFloat, BeforeValidator(_seconds)]
"""Seconds, which may be written as a duration."""


class Section(BaseModel):
    """A part of the config: frozen, and without keys it does not know."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
