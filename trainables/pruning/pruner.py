"""Prunes filters of a pretrained model, and rebuilds a pruned one."""

import dataclasses
import hashlib
import json
from collections.abc import Callable, Collection, Hashable, Mapping, Sequence
from types import MappingProxyType

import torch
from torch import Tensor, nn

from trainables.backbones.skeleton import meta_copy, structure_key
from trainables.errors import InfeasibleError, InputError
from trainables.pruning import metadata, surgery, widths
from trainables.pruning.absorption import Absorbing, absorb
from trainables.pruning.channels.engine import find_groups
from trainables.pruning.channels.groups import ChannelGraph, ChannelGroup, Side
from trainables.pruning.choice import Choice
from trainables.pruning.folding import folded
from trainables.pruning.isomorphism import structural_kind
from trainables.pruning.plan import Criterion, PruningPlan, WidthRule
from trainables.pruning.proof import prove
from trainables.pruning.reductions import Reduction, dropped
from trainables.pruning.saliency import GateGradients
from trainables.pruning.selectors import DATA_DRIVEN, SELECTORS, evidence_of
from trainables.pruning.settling import UnsoundError, settle
from trainables.pruning.structure import PrunedStructure, Skipped
from trainables.remembered import Remembered

Correction = Callable[[Sequence[Reduction]], Absorbing]
"""How layers absorb the inputs that reductions take from them; see `ridge.fit_ridge`."""
_LEAST_SHARE = {WidthRule.INNER: 0.05, WidthRule.ALL: 0.25}
"""Least share of filters that may go; with less the plan would be dense by another name."""


def prune(
    model: nn.Module,
    plan: PruningPlan,
    *,
    head: nn.Module | str,
    resolution: int,
    seed: int,
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

    Every layer that the width rule names gets the planned width or is listed in `skipped` with what
    stands in the way. The result is proved to compute what the dense model does with the removed
    channels masked, in both modes, once per process for equal structures and cuts. Channels without
    which the proof succeeds stay and are listed. Where next to nothing could go, `InfeasibleError`
    names the layer and `model` is as it was.
    """
    names = _head_names(model, head)
    if plan.ratio == 0:
        return PrunedStructure()
    graph = find_groups(model, resolution=resolution, head=names)
    choice = _choose(model, graph, plan, head=names, seed=seed, gradients=gradients)
    faults = _faults.get(
        (_choice_key(model, choice, resolution=resolution), plan.width_rule),
        lambda: _find_faults(model, choice, plan.width_rule, head=names, resolution=resolution),
    )
    choice = _without(choice, faults, plan.width_rule, head=names)
    structure = choice.structure
    absorb(model, choice.reductions, correct(choice.reductions) if correct else {})
    rebuild(model, structure, resolution=resolution)
    return structure


def rebuild(model: nn.Module, structure: PrunedStructure, *, resolution: int) -> None:
    """Give a dense `model` of the same architecture the shapes of a pruned one, in place.

    Load the pruned state dict afterwards. Raises `InputError` where the model does not fit.
    """
    if not structure.cuts:
        return
    skeleton = meta_copy(model)
    dense = metadata.declared_shapes(skeleton, resolution=resolution)
    surgery.apply(skeleton, structure.cuts, structure.resizes)
    pruned = metadata.declared_shapes(skeleton, resolution=resolution)
    surgery.apply(model, structure.cuts, structure.resizes)
    metadata.mend(model, dense=dense, pruned=pruned)


def planned_structure(
    model: nn.Module, graph: ChannelGraph, plan: PruningPlan, *, head: Collection[str], seed: int
) -> PrunedStructure:
    """The structure that `plan` asks for; nothing is changed or proved.

    `graph` holds the model's channel groups and `head` names the classifier's modules. Raises
    `InfeasibleError` where the plan cannot be met.
    """
    return _choose(model, graph, plan, head=head, seed=seed).structure


_faults = Remembered[Mapping[int, str]](size=256)
"""By the choice: groups, by position in the graph, that must stay dense for a proof."""
_standard_faults = Remembered[Mapping[int, str]](size=32)
"""By structure: the faults of a standard choice, which most others share."""
_STANDARD = PruningPlan(ratio=0.5, criterion=Criterion.RANDOM, width_rule=WidthRule.ALL)


def _find_faults(
    model: nn.Module, choice: Choice, rule: WidthRule, *, head: Collection[str], resolution: int
) -> Mapping[int, str]:
    """The groups of `choice` that must stay dense, by position in the graph, with the reason.

    The same for equal arguments, whatever was found before: what all choices of one structure share
    is found with a choice of its own.
    """

    def attempt(choice: Choice) -> None:
        prove(
            model,
            choice.structure,
            mixings=choice.mixings(),
            resolution=resolution,
            modes=choice.graph.modes,
            draws=choice.graph.draws,
        )

    def settled(choice: Choice, known: Mapping[int, str]) -> Mapping[int, str]:
        cut = {choice.position(reduction.group): reduction.group for reduction in choice.reductions}
        return settle(cut, lambda dense: attempt(choice.keeping(dense)), faults=known)

    def standard() -> Mapping[int, str]:
        plan = dataclasses.replace(_STANDARD, width_rule=rule)
        return settled(_choose(model, choice.graph, plan, head=head, seed=0), {})

    try:
        attempt(choice)
    except UnsoundError:
        key = structure_key(model, resolution=resolution), frozenset(head), rule
        return settled(choice, _standard_faults.get(key, standard))
    return {}


def _without(
    choice: Choice, faults: Mapping[int, str], rule: WidthRule, *, head: Collection[str]
) -> Choice:
    """`choice` with the groups at fault dense and listed; `InfeasibleError` if too few are left."""
    if not faults:
        return choice
    _, skipped = _prunable(choice.model, choice.graph, rule, head, faults=faults)
    left = dataclasses.replace(choice.keeping(faults), skipped=skipped)
    if not left.structure.cuts:
        raise InfeasibleError(next(iter(faults.values())))
    return left


def _choose(
    model: nn.Module,
    graph: ChannelGraph,
    plan: PruningPlan,
    *,
    head: Collection[str],
    seed: int,
    gradients: GateGradients | None = None,
) -> Choice:
    groups, skipped = _prunable(model, graph, plan.width_rule, head)
    scores = _scores(model, groups, plan.criterion, seed=seed, gradients=gradients)
    kinds = [structural_kind(model, group) for group in groups]
    kept = widths.keep(groups, scores, plan, kinds=kinds)
    if all(len(stays) == group.width for group, stays in zip(groups, kept, strict=True)):
        raise InfeasibleError(
            f"ratio={plan.ratio} with round_to={plan.round_to} removes no channel of "
            f"{type(model).__name__}: every width is rounded back to what it was."
        )
    reductions = [
        folded(model, group, blocks=widths.block_channels(group), kept=len(stays))
        if plan.criterion is Criterion.FOLDING
        else dropped(group, stays)
        for group, stays in zip(groups, kept, strict=True)
    ]
    return Choice(model=model, graph=graph, reductions=tuple(reductions), skipped=skipped)


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


def _choice_key(model: nn.Module, choice: Choice, *, resolution: int) -> Hashable:
    """Equal for equal cuts alone: where channels are moved it matters which of them go."""
    cuts = hashlib.sha256(json.dumps(choice.structure.to_dict()).encode()).hexdigest()
    return structure_key(model, resolution=resolution), cuts


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
    model: nn.Module,
    graph: ChannelGraph,
    rule: WidthRule,
    head: Collection[str],
    *,
    faults: Mapping[int, str] = MappingProxyType({}),
) -> tuple[list[ChannelGroup], tuple[Skipped, ...]]:
    """The groups that `rule` names and that can be cut, and what else it names.

    `faults` are known by position in the graph.
    """
    named = [group for group in graph.groups if group.producers and not group.is_output]
    if rule is WidthRule.INNER:
        named = [group for group in named if group.is_inner]
    reasons = {id(group): _obstacle(group) for group in named}
    reasons |= {id(graph.groups[position]): reason for position, reason in faults.items()}
    free = [group for group in named if reasons[id(group)] is None]
    skipped: dict[str, Skipped] = {}
    for group in named:
        if reason := reasons[id(group)]:
            wide = {n: i for n, i in _outputs(group).items() if graph.layers[n] > 1}
            for name, indices in wide.items():
                before = skipped[name].channels if name in skipped else 0
                skipped[name] = Skipped(name=name, channels=before + len(indices), reason=reason)
    filters = {
        name: width for name, width in graph.layers.items() if name not in head and width > 1
    }
    covered: dict[str, set[int]] = {}
    for group in free:
        for name, indices in _outputs(group).items():
            covered.setdefault(name, set()).update(indices)
    if rule is WidthRule.ALL:
        for name, width in filters.items():
            missing = (
                width
                - len(covered.get(name, ()))
                - (skipped[name].channels if name in skipped else 0)
            )
            if missing:
                skipped[name] = Skipped(
                    name=name,
                    channels=missing,
                    reason=(
                        f"{missing} of the {width} output channels of {name} belong to no group "
                        "that may go: they are the model's output, or do not reach it as channels."
                    ),
                )
        skipped |= {
            name: Skipped(
                name=name,
                channels=width,
                reason=f"{name} is used outside of any layer that can be cut, and stays dense.",
            )
            for name, width in graph.loose.items()
            if name not in head
        }
    found = sum(len(indices) for indices in covered.values())
    least = _LEAST_SHARE[rule]
    if not found or found < least * sum(filters.values()):
        first = next(iter(skipped.values()), None)
        raise InfeasibleError(
            f"{type(model).__name__} has next to no channels that the width rule {rule.value!r} "
            f"may take, {found} of its {sum(filters.values())} filters (at least {least:.0%} are "
            "asked for)" + (f": {first.reason}" if first else ".")
        )
    return free, tuple(skipped.values())


def _obstacle(group: ChannelGroup) -> str | None:
    """Why no channel of `group` can go, if none can."""
    if group.fault is not None:
        return group.fault
    outputs = _outputs(group)
    if group.width == 1 and any(len(indices) > 1 for indices in outputs.values()):
        return f"The channels of {group.name} all depend on one another."
    try:
        widths.block_channels(group)
    except InfeasibleError as error:
        return str(error)
    return None


def _outputs(group: ChannelGroup) -> dict[str, tuple[int, ...]]:
    """The group's filters in each layer that makes them, gates included."""
    return {m.name: m.indices for m in group.members if m.side is Side.OUT}
