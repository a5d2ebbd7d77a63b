"""Ridge correction: layers behind a pruned one learn to do without what is missing.

With X [C, n] what a layer reads in the dense model and Z = M X [K, n] what it will read, each
input that goes is predicted from those that stay by ridge regression (GRAIL, arXiv 2602.23795;
ThiNet, arXiv 1707.06342, is its ancestor):

    B = X Zᵀ (Z Zᵀ + λ · mean(diag Z Zᵀ) · I)⁻¹        W' = W B

For plain dropping Z Zᵀ is the kept part of the Gram matrix. One forward pass of the dense model
serves all layers: each is corrected for its own loss, at the input that it really reads (behind
norms, activations, depthwise layers, pooling), as if those before it were exact. They nearly are,
because they are corrected as well; going layer by layer through the pruned model instead would need
a pass for each. No labels.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from trainables.backbones.layers import is_within
from trainables.backbones.modes import eval_mode
from trainables.errors import InfeasibleError
from trainables.learning.parts_that_fit import in_parts_that_fit
from trainables.pruning.absorption import Absorbing, blocks_of
from trainables.pruning.channels.groups import Side
from trainables.pruning.reductions import (
    ReducedLayer,
    Reduction,
    averaged,
    kept_of,
    membership,
    reduced_layers,
)

PENALTY = 1e-3
"""λ, relative to the mean square of the inputs that stay."""
_PLACES = 8  # a side: of a map at most 8 × 8 pixels, evenly spread; neighbours say the same again


@dataclass(frozen=True, kw_only=True)
class RidgeCorrection:
    """How each layer absorbs the inputs that it loses, and what it cost to find out."""

    absorbing: Absorbing
    """Layer name -> B [C, K] of each of its groups."""
    flops: float
    """FLOPs besides the forward passes: for each layer and group, with n places in all,
    2·C·K·n (X Zᵀ) + 2/3·K³ + 2·C·K² (solving for B) + 2·C·K·(size of the rest of W) (W B)."""


def fit_ridge(
    model: nn.Module,
    reductions: Sequence[Reduction],
    batches: Iterable[Tensor],
    *,
    head: str | None = None,
) -> RidgeCorrection:
    """B for every layer that loses inputs by `reductions`, from images through the dense `model`.

    `batches` are images [n, channels, height, width], normalised and not augmented. The classifier
    named `head` is left out: its weights are random, so there is nothing to correct. Nothing is
    changed. Without any image there is no correction. A batch that does not fit into memory is
    halved until it does. Raises `InfeasibleError` where a layer reads values that are not finite.
    """
    layers = [
        _Regression(model, layer)
        for layer in reduced_layers(reductions)
        if layer.side is Side.IN and not (head and is_within(layer.name, head))
    ]
    hooks = [
        model.get_submodule(regression.layer.name).register_forward_pre_hook(regression.note)
        for regression in layers
    ]
    try:
        with torch.no_grad(), eval_mode(model):
            for images in batches:
                read = partial(_read, model, layers, images)
                list(in_parts_that_fit(read, len(images), part=len(images)))
    finally:
        for hook in hooks:
            hook.remove()
    reached = [regression for regression in layers if regression.flops]
    absorbing = {regression.layer.name: regression.solve() for regression in reached}
    flops = sum(regression.flops for regression in reached)
    return RidgeCorrection(absorbing=absorbing, flops=flops)


def _read(model: nn.Module, layers: Sequence["_Regression"], images: Tensor, rows: slice) -> None:
    """Passes `rows` of `images` forward; of a pass that fails, layers keep nothing."""
    try:
        model(images[rows])
    except torch.OutOfMemoryError:
        for regression in layers:
            regression.forget()
        raise
    for regression in layers:
        regression.keep()


class _Regression:
    """Collects X Zᵀ of one layer, group by group: noted as images pass, kept once they have."""

    def __init__(self, model: nn.Module, layer: ReducedLayer) -> None:
        self.layer = layer
        self.flops = 0.0
        self._stands = blocks_of(model, layer)
        self._products = [
            torch.zeros(len(part), len(kept_of(part)), dtype=torch.float64) for part in self._stands
        ]
        self._noted: list[tuple[int, Tensor, float]] = []
        weight = model.get_parameter(f"{layer.name}.weight")
        self._rest = weight.numel() / len(layer.stands)  # of W, for each of its inputs

    def note(self, module: nn.Module, inputs: tuple[Any, ...]) -> None:
        values = _samples(
            inputs[0].detach(), taps=self.layer.taps, last=isinstance(module, nn.Linear)
        )
        parts = values.chunk(len(self._stands))
        for block, (part, stands) in enumerate(zip(parts, self._stands, strict=True)):
            carried = averaged(stands, part)
            product = (part @ carried.T).to("cpu", torch.float64)
            self._noted.append((block, product, 2.0 * len(part) * len(carried) * part.shape[1]))

    def keep(self) -> None:
        for block, product, flops in self._noted:
            self._products[block] += product
            self.flops += flops
        self.forget()

    def forget(self) -> None:
        self._noted.clear()

    def solve(self) -> list[Tensor]:
        """B of each group, once all images have passed."""
        pairs = zip(self._products, self._stands, strict=True)
        return [self._absorbing(product, stands) for product, stands in pairs]

    def _absorbing(self, product: Tensor, stands: Tensor) -> Tensor:
        if not product.isfinite().all():
            raise InfeasibleError(f"{self.layer.name} reads values that are not finite.")
        inputs, kept = len(stands), len(kept_of(stands))
        self.flops += 2 / 3 * kept**3 + 2.0 * inputs * kept**2 + 2.0 * kept * inputs * self._rest
        gram = averaged(stands, product)
        scale = gram.diagonal().mean()
        if scale == 0:  # none of those that stay ever fires
            return membership(stands)
        penalised = gram + PENALTY * scale * torch.eye(kept, dtype=gram.dtype)
        solution: Tensor = torch.linalg.solve(penalised, product.T)
        return solution.T


def _samples(values: Tensor, *, taps: int, last: bool) -> Tensor:
    """The values that a layer reads, [channels, places], at places spread evenly over each map."""
    if last:
        values = values.movedim(-1, 1) if taps == 1 else values.view(len(values), -1, taps)
    if taps == 1:
        for dim in range(2, values.dim()):
            step = -(-values.shape[dim] // _PLACES)
            values = values[(slice(None),) * dim + (slice(step // 2, None, step),)]
    return values.transpose(0, 1).flatten(1)
