"""Transfer of a backbone that arrives sparse: what is zero stays zero.

"How Well Do Sparse ImageNet Models Transfer?" (arXiv 2111.13445): a backbone made sparse on its
source task is transferred with its mask fixed, applied anew after every step, below a dense new
head; either the head alone is trained, on features extracted once (linear), or everything is
(full). Ours: any `trainable_depth` between the two, and that the mask is read from the values. A
weight of a convolution or linear layer below the head that is exactly zero is held; biases and
norms are free.

No settings. A backbone without zeros is refused when the config is read; `full` is the same method
there, because nothing would be held.
"""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from search_spaces.recipe import Recipe
from trainables.backbones.layers import backbone_weights
from trainables.errors import InputError
from trainables.mechanisms.masks import MaskedTransfer, mask_tensors
from trainables.mechanisms.sparsity import check_sparsity
from trainables.method import Conditions, MethodContext, Prepared, Transfer
from trainables.settings import Settings


def check(recipe: Recipe, conditions: Conditions) -> None:
    """Raises `InputError` for settings and for a backbone without zeros to keep."""
    Settings.read(recipe.settings)
    check_sparsity(conditions.model, 0.0)
    if not _is_sparse(conditions.model):
        raise InputError(
            f"keep_sparse keeps the zeros of a sparse backbone, and no weight of this "
            f"{type(conditions.model).__name__} is zero; choose a sparse backbone, or full."
        )


def prepare(model: nn.Module, context: MethodContext) -> Prepared:
    """Notes which weights are zero; costs nothing."""
    sparse = _is_sparse(model)
    tensors = mask_tensors(_masks(model)) if sparse else {}
    return Prepared(flops=0.0, structure={"sparse": sparse}, tensors=tensors)


def transfer(recipe: Recipe, structure: Mapping[str, Any]) -> Transfer:
    """Returns a transfer that holds the zeros, where there are any."""
    return MaskedTransfer() if structure["sparse"] else Transfer()


def _is_sparse(model: nn.Module) -> bool:
    return any(bool((weight == 0).any()) for weight in backbone_weights(model).values())


def _masks(model: nn.Module) -> dict[str, Tensor]:
    return {name: weight.detach() != 0 for name, weight in backbone_weights(model).items()}
