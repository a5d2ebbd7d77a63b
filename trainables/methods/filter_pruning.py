"""Zero-shot structured filter pruning before finetuning (arXiv 2304.13164).

From the paper: filters of the pretrained model are removed before any finetuning, by weight
magnitude, leaving the representation's size alone (`width_rule=inner`). Ours, or of later work that
`trainables.pruning` names: the other criteria, the rule `all`, rankings over several layers, and
the repairs.

Settings: `pruning_ratio` in [0, 1), `criterion` (l1, l2, batch_norm_scale, geometric_median,
taylor, fisher, random, folding), `width_rule` (inner, all), `scope` (layer, global, isomorphic),
`batch_norm_repair` and `ridge_repair` (true, false). Ratio 0 is finetuning of the dense model; it
needs no other setting and heeds `batch_norm_repair` alone, for new images move statistics too.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

from torch import Tensor, nn

from search_spaces.recipe import Recipe, Setting
from trainables.errors import InfeasibleError, InputError
from trainables.learning.batch_norm import reestimate_batch_norm
from trainables.method import Conditions, MethodContext, Prepared, Transfer
from trainables.pruning.absorption import Absorbing
from trainables.pruning.channels.groups import ChannelGroup
from trainables.pruning.plan import PruningPlan
from trainables.pruning.pruner import prune
from trainables.pruning.pruner import rebuild as rebuild_structure
from trainables.pruning.reductions import Reduction
from trainables.pruning.ridge import fit_ridge
from trainables.pruning.saliency import gate_gradients
from trainables.pruning.structure import PrunedStructure

CALIBRATION_IMAGES = 256
"""Training images passed forward by each repair; their cost counts."""
SALIENCY_IMAGES = 128
"""Training images whose loss is differentiated for Taylor and Fisher; their cost counts."""
_CHOICES = ("criterion", "width_rule", "scope")
_REPAIRS = ("batch_norm_repair", "ridge_repair")
_SETTINGS = ("pruning_ratio", *_CHOICES, *_REPAIRS)


def check(recipe: Recipe, conditions: Conditions) -> None:
    """Raises `InputError` for settings that make no sense for any model."""
    _plan(recipe.settings, round_to=1)


def prepare(model: nn.Module, context: MethodContext) -> Prepared:
    """Removes filters and repairs what is left: ridge before the cut, batch norms after it.

    Costs, all counted: Taylor or Fisher `SALIENCY_IMAGES` forward and backward passes of the dense
    model; the ridge correction `CALIBRATION_IMAGES` forward passes of the dense model and its own
    algebra; re-estimation `CALIBRATION_IMAGES` forward passes of what is left. Raises
    `InfeasibleError` naming the layer that stands in the way.
    """
    plan = _plan(context.recipe.settings, round_to=context.width_multiple)
    return _Preparation(model, context).run(plan)


def rebuild(model: nn.Module, structure: Mapping[str, Any], recipe: Recipe) -> Transfer:
    """Gives a fresh dense model the pruned shapes."""
    rebuild_structure(model, PrunedStructure.from_dict(structure), resolution=recipe.resolution)
    return Transfer()


class _Preparation:
    """One model on its way from dense to pruned and repaired, and what that has cost so far."""

    def __init__(self, model: nn.Module, context: MethodContext) -> None:
        self._model = model
        self._context = context
        self._flops = 0.0

    def run(self, plan: PruningPlan) -> Prepared:
        context = self._context
        try:
            structure = prune(
                self._model,
                plan,
                head=context.head,
                resolution=context.recipe.resolution,
                seed=context.seed,
                gradients=self._gradients,
                correct=self._ridge if context.recipe.settings.get("ridge_repair") else None,
            )
        except InfeasibleError as error:
            raise InfeasibleError(str(error), spent_flops=self._flops) from error
        if context.recipe.settings.get("batch_norm_repair"):
            images = reestimate_batch_norm(self._model, context.calibration(CALIBRATION_IMAGES))
            self._flops += images * context.forward_flops() if images else 0.0
        return Prepared(flops=self._flops, structure=structure.to_dict())

    def _gradients(self, groups: Sequence[ChannelGroup]) -> Sequence[Tensor]:
        batches = _billed(self._context.labelled(SALIENCY_IMAGES), self._bill_saliency)
        return gate_gradients(self._model, groups, batches)

    def _bill_saliency(self, batch: tuple[Tensor, Tensor]) -> None:
        self._flops += len(batch[0]) * self._context.train_flops()

    def _ridge(self, reductions: Sequence[Reduction]) -> Absorbing:
        batches = _billed(self._context.calibration(CALIBRATION_IMAGES), self._bill_forward)
        ridge = fit_ridge(self._model, reductions, batches, head=self._context.head)
        self._flops += ridge.flops
        return ridge.absorbing

    def _bill_forward(self, images: Tensor) -> None:
        self._flops += len(images) * self._context.forward_flops()


_Batch = TypeVar("_Batch")


def _billed(batches: Iterable[_Batch], bill: Callable[[_Batch], None]) -> Iterator[_Batch]:
    """`batches`, each paid for as it is drawn, so that a failure on the way is paid for too."""
    for batch in batches:
        bill(batch)
        yield batch


def _plan(settings: Mapping[str, Setting], *, round_to: int) -> PruningPlan:
    ratio = settings.get("pruning_ratio")
    needed = {"pruning_ratio"} if ratio == 0 and not isinstance(ratio, bool) else set(_SETTINGS)
    if not needed <= set(settings) <= set(_SETTINGS):
        raise InputError(
            f"filter_pruning has the settings {', '.join(_SETTINGS)}, and the recipe gives "
            f"{', '.join(sorted(settings)) or 'none'}; only a pruning_ratio of 0 needs no others."
        )
    if isinstance(ratio, bool) or not isinstance(ratio, int | float) or not 0 <= ratio < 1:
        raise InputError(f"pruning_ratio={ratio!r} must lie in [0, 1); 0 means dense.")
    for name in _REPAIRS:
        if not isinstance(settings.get(name, False), bool):
            raise InputError(f"{name}={settings[name]!r} must be true or false.")
    choices: dict[str, Any] = {name: settings[name] for name in _CHOICES if name in settings}
    return PruningPlan(ratio=float(ratio), round_to=round_to, **choices)
