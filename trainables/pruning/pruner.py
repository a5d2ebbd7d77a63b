"""Prunes filters of a pretrained model, and rebuilds a pruned one."""

from collections.abc import Collection, Sequence

import torch
from torch import Tensor, nn

from trainables.compute import meta_copy
from trainables.errors import InfeasibleError, InputError
from trainables.pruning import metadata, surgery, widths
from trainables.pruning.engine import find_groups
from trainables.pruning.groups import ChannelGraph, ChannelGroup, Member, Side
from trainables.pruning.plan import PruningPlan, WidthRule
from trainables.pruning.proof import prove
from trainables.pruning.selectors import SELECTORS, filters_of
from trainables.pruning.structure import Cut, PrunedStructure

_LEAST_INNER_SHARE = 0.05
"""Of all filters; between mixed or selective kernels (3 %) and the least of others (17 %)."""


def prune(
    model: nn.Module,
    plan: PruningPlan,
    *,
    head: nn.Module | str,
    resolution: int,
    seed: int,
    channels: int = 3,
) -> PrunedStructure:
    """Remove filters from `model` in place as `plan` says; returns what was kept.

    `head` is the classifier, or its name: its outputs never go. The filters are really removed, so
    the savings are real. Modes, `requires_grad` and the model's own statements about its widths
    (`num_features`, …) stay right; parameters that were cut are new objects, so make the optimiser
    afterwards. Equal arguments give equal results; `seed` matters to the random criterion alone.

    Either every layer that the width rule names gets the planned width, and the result is proved to
    compute what the dense model does with the removed channels masked, or `InfeasibleError` names
    the layer that stands in the way and `model` is as it was.
    """
    names = _head_names(model, head)
    if plan.ratio == 0:
        return PrunedStructure()
    graph = find_groups(model, resolution=resolution, channels=channels, head=names)
    cuts = planned_cuts(model, graph, plan, head=names, seed=seed)
    prove(model, cuts, resolution=resolution, channels=channels)
    structure = PrunedStructure(cuts=cuts)
    rebuild(model, structure, resolution=resolution, channels=channels)
    return structure


def rebuild(
    model: nn.Module, structure: PrunedStructure, *, resolution: int, channels: int = 3
) -> None:
    """Give a dense `model` of the same architecture the shapes of a pruned one, in place.

    Load the pruned state dict afterwards. Raises `InputError` where the model does not fit.
    """
    if not structure.cuts:
        return
    skeleton = meta_copy(model)
    dense = metadata.declared_shapes(skeleton, resolution=resolution, channels=channels)
    surgery.apply(skeleton, structure.cuts)
    pruned = metadata.declared_shapes(skeleton, resolution=resolution, channels=channels)
    surgery.apply(model, structure.cuts)
    metadata.mend(model, dense=dense, pruned=pruned)


def planned_cuts(
    model: nn.Module, graph: ChannelGraph, plan: PruningPlan, *, head: Collection[str], seed: int
) -> tuple[Cut, ...]:
    """The cuts that `plan` asks for, given the model's channel groups; nothing is changed.

    `head` names the classifier's modules. Raises `InfeasibleError` where the plan cannot be met.
    """
    groups = _prunable(model, graph, plan.width_rule, head)
    generator = torch.Generator().manual_seed(seed)
    scores = [
        SELECTORS[plan.criterion](filters_of(model, group), group.width, generator)
        for group in groups
    ]
    cuts = _cuts(groups, widths.keep(groups, scores, plan))
    if not cuts:
        raise InfeasibleError(
            f"ratio={plan.ratio} with round_to={plan.round_to} removes no channel of "
            f"{type(model).__name__}: every width is rounded back to what it was."
        )
    return cuts


def _head_names(model: nn.Module, head: nn.Module | str) -> frozenset[str]:
    modules = dict(model.named_modules())
    for name, module in modules.items():
        if name and (module is head or name == head):
            inside = f"{name}."
            return frozenset(n for n in modules if n == name or n.startswith(inside))
    given = repr(head) if isinstance(head, str) else f"the given {type(head).__name__}"
    raise InputError(
        f"{given} is no module of {type(model).__name__}; "
        "name its classifier, whose outputs are never pruned."
    )


def _prunable(
    model: nn.Module, graph: ChannelGraph, rule: WidthRule, head: Collection[str]
) -> list[ChannelGroup]:
    """The groups that `rule` names; none of them, and no layer they must cover, may be missing."""
    made = [group for group in graph.groups if group.producers and group.width > 1]
    free = [group for group in made if not group.is_output]
    if rule is WidthRule.INNER:
        free = [group for group in free if group.is_inner]
    for group in free:
        if group.fault is not None:
            raise InfeasibleError(f"{group.name} cannot be pruned: {group.fault}")
    if rule is WidthRule.INNER:
        inner = sum(group.width for group in free)
        filters = sum(width for name, width in graph.layers.items() if name not in head)
        if inner < _LEAST_INNER_SHARE * filters or not free:
            # a dense model by another name: nothing but the insides of a few gates would go
            raise InfeasibleError(
                f"{type(model).__name__} has next to no block-internal channels, {inner} of its "
                f"{filters} filters (at least {_LEAST_INNER_SHARE:.0%} are asked for); "
                "the width rule 'all' may find more."
            )
        return free
    covered: dict[str, set[int]] = {}
    for group in free:
        for member in group.members:
            if member.side is Side.OUT:
                covered.setdefault(member.name, set()).update(member.indices)
    for name, width in graph.layers.items():
        missing = width - len(covered.get(name, ()))
        if name not in head and width > 1 and missing:
            raise InfeasibleError(
                f"{name} cannot be pruned in full: {missing} of its {width} output channels "
                "belong to no group that may go, so the dependency graph does not follow an "
                "operation after it, or they are the model's output."
            )
    return free


def _cuts(groups: Sequence[ChannelGroup], kept: Sequence[Tensor]) -> tuple[Cut, ...]:
    removed: dict[tuple[str, Side], set[int]] = {}
    sides: dict[tuple[str, Side], Member] = {}
    for group, channels in zip(groups, kept, strict=True):
        stays = set(channels.tolist())
        for member in group.members:
            key = member.name, member.side
            sides[key] = member
            removed.setdefault(key, set()).update(
                index
                for channel, index in zip(member.channels, member.indices, strict=True)
                if channel not in stays
            )
    for (name, side), gone in removed.items():
        if len(gone) == sides[name, side].width:
            raise InfeasibleError(f"{name} would lose all its channels ({side}).")
    return tuple(
        Cut(
            name=name,
            side=side,
            width=sides[name, side].width,
            kept=tuple(i for i in range(sides[name, side].width) if i not in gone),
        )
        for (name, side), gone in removed.items()
        if gone
    )
