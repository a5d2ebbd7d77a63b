"""Zero-shot structured filter pruning before finetuning (arXiv 2304.13164).

From the paper: filters of the pretrained model are removed before any finetuning, by weight
magnitude, leaving the representation's size alone (`width_rule=inner`). Ours, or of later work that
`trainables.pruning` names: the other criteria, the rule `all`, rankings over several layers, and
the repairs.

Settings: `pruning_ratio` in [0, 1), `criterion` (l1, l2, batch_norm_scale, geometric_median,
taylor, fisher, random, folding), `width_rule` (inner, all), `scope` (layer, global, isomorphic),
`batch_norm_repair` and `ridge_repair` (true, false). Ratio 0 is finetuning of the dense model; it
needs no other setting and heeds `batch_norm_repair` alone, because new images move statistics too.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Annotated, Any, Self, TypeVar

from pydantic import Field, model_validator
from torch import Tensor, nn

from search_spaces.recipe import Recipe
from trainables.errors import InfeasibleError
from trainables.mechanisms.batch_norm_repair import CALIBRATION_IMAGES, repair_batch_norms
from trainables.method import Conditions, MethodContext, Prepared, Transfer
from trainables.pruning.absorption import Absorbing
from trainables.pruning.channels.groups import ChannelGroup
from trainables.pruning.plan import Criterion, FilterScope, PruningPlan, WidthRule
from trainables.pruning.pruner import prune, rebuild
from trainables.pruning.reductions import Reduction
from trainables.pruning.ridge import fit_ridge
from trainables.pruning.saliency import gate_gradients
from trainables.pruning.structure import PrunedStructure
from trainables.settings import Settings

SALIENCY_IMAGES = 128
"""Training images whose loss is differentiated for Taylor and Fisher; their cost counts."""


class _Settings(Settings):
    pruning_ratio: float = Field(ge=0, lt=1)
    criterion: Annotated[Criterion, Field(strict=False)] = Criterion.L1
    width_rule: Annotated[WidthRule, Field(strict=False)] = WidthRule.INNER
    scope: Annotated[FilterScope, Field(strict=False)] = FilterScope.LAYER
    batch_norm_repair: bool = False
    ridge_repair: bool = False

    @model_validator(mode="after")
    def _complete(self) -> Self:
        missing = [n for n in type(self).model_fields if n not in self.model_fields_set]
        if self.pruning_ratio > 0 and missing:
            raise ValueError(
                f"pruning_ratio={self.pruning_ratio!r} needs {', '.join(missing)} as well; only a "
                "pruning_ratio of 0 needs no others"
            )
        return self


def check(recipe: Recipe, conditions: Conditions) -> None:
    """Raises `InputError` for settings that make no sense for any model."""
    _Settings.read(recipe.settings)


def prepare(model: nn.Module, context: MethodContext) -> Prepared:
    """Removes filters and repairs the rest: ridge before the cut, batch norms after it.

    Costs, all counted: Taylor or Fisher `SALIENCY_IMAGES` forward and backward passes of the dense
    model; the ridge correction `CALIBRATION_IMAGES` forward passes of the dense model and its own
    algebra; re-estimation `CALIBRATION_IMAGES` forward passes of the pruned model. Raises
    `InfeasibleError` naming the layer that stands in the way.
    """
    return _Preparation(model, context).run()


def reshape(model: nn.Module, structure: Mapping[str, Any], recipe: Recipe) -> None:
    """Gives a fresh dense model the pruned shapes."""
    rebuild(model, PrunedStructure.from_dict(structure), resolution=recipe.resolution)


def transfer(recipe: Recipe, structure: Mapping[str, Any]) -> Transfer:
    """Returns plain finetuning."""
    return Transfer()


class _Preparation:
    """One model on its way from dense to pruned and repaired, and what that has cost so far."""

    def __init__(self, model: nn.Module, context: MethodContext) -> None:
        self._model = model
        self._context = context
        self._settings = _Settings.read(context.recipe.settings)
        self._flops = 0.0

    def run(self) -> Prepared:
        context = self._context
        try:
            structure = prune(
                self._model,
                self._plan(),
                head=context.head,
                resolution=context.recipe.resolution,
                seed=context.seed,
                gradients=self._gradients,
                correct=self._ridge if self._settings.ridge_repair else None,
            )
        except InfeasibleError as error:
            raise InfeasibleError(str(error), spent_flops=self._flops) from error
        if self._settings.batch_norm_repair:
            self._flops += repair_batch_norms(self._model, context)
        return Prepared(flops=self._flops, structure=structure.to_dict())

    def _plan(self) -> PruningPlan:
        return PruningPlan(
            ratio=self._settings.pruning_ratio,
            criterion=self._settings.criterion,
            width_rule=self._settings.width_rule,
            scope=self._settings.scope,
            round_to=self._context.width_multiple,
        )

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
