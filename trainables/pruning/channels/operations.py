"""Chooses the rule that follows channels through an operation of PyTorch.

Operations that PyTorch itself tags as pointwise need no rule; those without any rule keep all
channels that enter them.
"""

import torch

from trainables.pruning.channels import computations, moves
from trainables.pruning.channels.flow import Call, Flows, Rule

RULES = dict(moves.RULES) | dict(computations.RULES)
"""By the name of the operation."""


def follow(flows: Flows, call: Call) -> None:
    """Gives the output of `call`, which something that flows has entered, its labels."""
    rule = _rule(call)
    if rule is None:
        flows.stop(call, call.name)
    else:
        rule(flows, call)


def _rule(call: Call) -> Rule | None:
    if call.name in RULES:
        return RULES[call.name]
    for beginning, rule in computations.FAMILIES:
        if call.name.startswith(beginning):
            return rule
    return computations.pointwise if torch.Tag.pointwise in call.func.tags else None
