"""Zero-shot structured filter pruning before finetuning (arXiv 2304.13164).

From the paper: filters of the pretrained model are removed before any finetuning, by weight
magnitude, leaving the representation's size alone (`width_rule=inner`). Ours: which norm, the
rule `all`, global ranking, and the re-estimation of batch-norm statistics afterwards.

Settings: `pruning_ratio` in [0, 1), `criterion` (l1, l2, random), `width_rule` (inner, all),
`scope` (layer, global). Ratio 0 is plain finetuning of the dense model.
"""

from collections.abc import Mapping
from typing import Any

from torch import nn

from search_spaces.recipe import Setting
from trainables.errors import InputError
from trainables.method import MethodContext, Prepared
from trainables.pruning.plan import PruningPlan
from trainables.pruning.pruner import prune
from trainables.pruning.pruner import rebuild as rebuild_structure
from trainables.pruning.repair import reestimate_batch_norm
from trainables.pruning.structure import PrunedStructure

CALIBRATION_IMAGES = 256
"""Training images passed forward to re-estimate batch-norm statistics; their cost counts."""
_SETTINGS = ("pruning_ratio", "criterion", "width_rule", "scope")


def check(settings: Mapping[str, Setting]) -> None:
    """Raises `InputError` for settings that make no sense for any model."""
    _plan(settings)


def prepare(model: nn.Module, context: MethodContext) -> Prepared:
    """Removes filters and fits the batch-norm statistics to what is left.

    Costs `CALIBRATION_IMAGES` forward passes of the pruned model, nothing when the ratio is 0.
    Raises `InfeasibleError` naming the layer that stands in the way.
    """
    plan = _plan(context.settings)
    structure = prune(
        model, plan, head=context.head, resolution=context.resolution, seed=context.seed
    )
    flops = 0.0
    if structure.cuts:
        images = reestimate_batch_norm(model, context.calibration(CALIBRATION_IMAGES))
        flops = images * context.forward_flops() if images else 0.0
    return Prepared(flops=flops, structure=structure.to_dict())


def rebuild(model: nn.Module, structure: Mapping[str, Any], context: MethodContext) -> None:
    """Gives a fresh dense model the pruned shapes."""
    rebuild_structure(model, PrunedStructure.from_dict(structure), resolution=context.resolution)


def _plan(settings: Mapping[str, Setting]) -> PruningPlan:
    if set(settings) != set(_SETTINGS):
        raise InputError(
            f"filter_pruning has the settings {', '.join(_SETTINGS)}, and the recipe gives "
            f"{', '.join(sorted(settings)) or 'none'}."
        )
    ratio = settings["pruning_ratio"]
    if isinstance(ratio, bool) or not isinstance(ratio, int | float) or not 0 <= ratio < 1:
        raise InputError(f"pruning_ratio={ratio!r} must lie in [0, 1); 0 means dense.")
    return PruningPlan(
        ratio=float(ratio),
        criterion=settings["criterion"],  # type: ignore[arg-type]  # the plan checks and converts
        width_rule=settings["width_rule"],  # type: ignore[arg-type]
        scope=settings["scope"],  # type: ignore[arg-type]
    )
