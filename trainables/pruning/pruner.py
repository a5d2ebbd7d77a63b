"""Prunes filters of a pretrained model, and rebuilds a pruned one."""

from collections.abc import Callable, Collection, Sequence

import torch
from torch import Tensor, nn

from trainables.compute import meta_copy
from trainables.errors import InfeasibleError, InputError
from trainables.pruning import metadata, surgery, widths
from trainables.pruning.absorption import Absorbing, absorb
from trainables.pruning.engine import find_groups
from trainables.pruning.folding import folded
from trainables.pruning.groups import ChannelGraph, ChannelGroup, Member, Side
from trainables.pruning.isomorphism import structural_kind
from trainables.pruning.plan import Criterion, PruningPlan, WidthRule
from trainables.pruning.proof import prove
from trainables.pruning.reductions import Reduction, dropped
from trainables.pruning.saliency import GateGradients
from trainables.pruning.selectors import DATA_DRIVEN, SELECTORS, evidence_of
from trainables.pruning.structure import Cut, PrunedStructure

Correction = Callable[[Sequence[Reduction]], Absorbing]
"""How layers absorb the inputs that reductions take from them; see `ridge.fit_ridge`."""
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
    gradients: GateGradients | None = None,
    correct: Correction | None = None,
) -> PrunedStructure:
    """Remove filters from `model` in place as `plan` says; returns what was kept.

    `head` is the classifier, or its name: its outputs never go. The filters are really removed, so
    the savings are real. Modes, `requires_grad` and the model's own statements about its widths
    (`num_features`, …) stay right; parameters that were cut are new objects, so make the optimiser
    afterwards. Equal arguments give equal results; `seed` matters to the random criterion alone.

    `gradients` measures what criteria in `selectors.DATA_DRIVEN` rank by. `correct` is called once
    the cuts are proved and before they are made; it says how layers absorb the inputs they lose.

    Either every layer that the width rule names gets the planned width, and the result is proved to
    compute what the dense model does with the removed channels masked, or `InfeasibleError` names
    the layer that stands in the way and `model` is as it was.
    """
    names = _head_names(model, head)
    if plan.ratio == 0:
        return PrunedStructure()
    graph = find_groups(model, resolution=resolution, channels=channels, head=names)
    reductions = planned_reductions(model, graph, plan, head=names, seed=seed, gradients=gradients)
    cuts = _cuts(reductions)
    prove(model, cuts, resolution=resolution, channels=channels)
    absorb(model, reductions, correct(reductions) if correct else {})
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
    return _cuts(planned_reductions(model, graph, plan, head=head, seed=seed))


def planned_reductions(
    model: nn.Module,
    graph: ChannelGraph,
    plan: PruningPlan,
    *,
    head: Collection[str],
    seed: int,
    gradients: GateGradients | None = None,
) -> tuple[Reduction, ...]:
    """What `plan` makes of each channel group that its width rule names; nothing is changed.

    Raises `InfeasibleError` where the plan cannot be met.
    """
    groups = _prunable(model, graph, plan.width_rule, head)
    scores = _scores(model, groups, plan.criterion, seed=seed, gradients=gradients)
    kinds = [structural_kind(model, group) for group in groups]
    kept = widths.keep(groups, scores, plan, kinds=kinds)
    if all(len(stays) == group.width for group, stays in zip(groups, kept, strict=True)):
        raise InfeasibleError(
            f"ratio={plan.ratio} with round_to={plan.round_to} removes no channel of "
            f"{type(model).__name__}: every width is rounded back to what it was."
        )
    if plan.criterion is not Criterion.FOLDING:
        return tuple(dropped(group, stays) for group, stays in zip(groups, kept, strict=True))
    return tuple(
        folded(model, group, blocks=widths.block_channels(group), kept=len(stays))
        for group, stays in zip(groups, kept, strict=True)
    )


def _scores(
    model: nn.Module,
    groups: Sequence[ChannelGroup],
    criterion: Criterion,
    *,
    seed: int,
    gradients: GateGradients | None,
) -> list[Tensor]:
    gates: Sequence[Tensor | None] = [None] * len(groups)
    if gradients is not None and criterion in DATA_DRIVEN:
        gates = gradients(groups)
    generator = torch.Generator().manual_seed(seed)
    return [
        SELECTORS[criterion](evidence_of(model, group, generator=generator, gates=gate))
        for group, gate in zip(groups, gates, strict=True)
    ]


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


def _cuts(reductions: Sequence[Reduction]) -> tuple[Cut, ...]:
    removed: dict[tuple[str, Side], set[int]] = {}
    sides: dict[tuple[str, Side], Member] = {}
    for reduction in reductions:
        stays = set(reduction.kept.tolist())
        for member in reduction.group.members:
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
