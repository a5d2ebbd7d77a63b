"""Names: the fields of the recipe that the parameters of the built-in search spaces give.

A parameter has the name of its field. Where a field needs a range of its own in some recipes, as
`learning_rate` does with AdamW and `sparsity` with each method, its parameter has a name of its
own too, so that a sampler never takes what it learnt of one for the other.
"""

import functools
from collections.abc import Iterable

from search_spaces.space import method_spaces

_FIELDS = {
    "adamw_rate": ("learning_rate",),
    "adamw_decay": ("weight_decay",),
    "last_stages_depth": ("trainable_depth",),
    "mixing": ("mixup", "cutmix"),
    "target_rung": ("target_flops",),
    "update_budget": ("budget",),
}
"""Fields by parameter, where its name does not tell them."""


@functools.cache
def fields_of(parameter: str) -> tuple[str, ...]:
    """Returns the recipe's fields, its settings among them, that a parameter gives.

    `METHOD_SETTING` gives SETTING. A name that no built-in space has is taken for a field's.
    """
    if parameter in _FIELDS:
        return _FIELDS[parameter]
    for method in method_spaces():
        if parameter.startswith(f"{method}_"):
            return (parameter.removeprefix(f"{method}_"),)
    return (parameter,)


def renamed(parameters: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """Returns the fields of each of the parameters that are called otherwise."""
    fields = {parameter: fields_of(parameter) for parameter in parameters}
    return {parameter: given for parameter, given in fields.items() if given != (parameter,)}


def with_fields(parameter: str) -> str:
    """Returns the parameter's name, followed by its fields where they are called otherwise.

    For example `adamw_rate (learning_rate)`.
    """
    fields = renamed([parameter]).get(parameter)
    return f"{parameter} ({', '.join(fields)})" if fields else parameter
