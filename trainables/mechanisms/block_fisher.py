"""The inverse of an empirical Fisher in diagonal blocks, and the losses it predicts for pruning.

The blocks are B successive values of the flattened weight; between them the Fisher is taken for
zero (WoodFisher, arXiv 2004.14340). In a block, of m samples with gradients g_i [B],

    F = λ I + 1/m Σ g_i g_iᵀ

and its inverse follows from F_0⁻¹ = I / λ by Woodbury's identity, one sample at a time:

    F_i⁻¹ = F_{i-1}⁻¹ - v vᵀ / (m + g_iᵀ v),    v = F_{i-1}⁻¹ g_i
"""

from math import ceil

import torch
import torch.nn.functional as F
from torch import Tensor

from trainables.errors import InfeasibleError


class BlockFisher:
    """The inverse Fisher of one weight.

    All blocks are worked on at once. Memory: the weight's values × `block_size` floats.
    """

    def __init__(self, weight: Tensor, *, block_size: int, dampening: float, samples: int) -> None:
        """`weight`, of any shape, tells size and device; `samples` is how many will be added.

        `dampening` is λ > 0. A weight smaller than a block is one block of its size, and the last
        block of others is padded with values that no gradient reaches.
        """
        self._shape = weight.shape
        self._size = min(block_size, weight.numel())
        self._samples = samples
        blocks = ceil(weight.numel() / self._size)
        identity = torch.eye(self._size, dtype=torch.float32, device=weight.device)
        self.inverse = (identity / dampening).repeat(blocks, 1, 1)
        """F⁻¹ of every block, float32 [blocks, B, B]."""
        self.flops = 0.0
        """FLOPs that the matrix products have cost so far."""

    def add(self, gradient: Tensor) -> None:
        """Adds one sample, whose gradient has the weight's shape.

        A product of matrix and vector, one of two vectors and an outer one: 4 B² + 2 B FLOPs a
        block.
        """
        columns = self._blocks(gradient).unsqueeze(2)  # [blocks, B, 1]
        products = self.inverse @ columns
        divisors = self._samples + columns.mT @ products  # [blocks, 1, 1]
        self.inverse.baddbmm_(products, (products / divisors).mT, alpha=-1)
        self._bill(4 * self._size**2 + 2 * self._size)

    def loss_increases(self, weight: Tensor) -> Tensor:
        """ρ_q = w_q² / (2 [F⁻¹]_qq) of each value alone, of the weight's shape.

        Raises `InfeasibleError` where rounding has eaten the inverse's diagonal.
        """
        diagonal = self.inverse.diagonal(dim1=1, dim2=2)
        if not (diagonal > 0).all():  # catches NaN
            raise InfeasibleError(
                "The inverse Fisher has a diagonal that is not positive: the gradients are too "
                "large, or not finite, for this dampening; raise it."
            )
        return self._unblocked(self._blocks(weight).square() / (2 * diagonal))

    def without(self, weight: Tensor, mask: Tensor) -> Tensor:
        """The weight with zeros where `mask` is False and the other values moved to make up.

        The removed values Q of a block go together, which is the exact minimum of the quadratic
        model of the loss: w - F⁻¹[:, Q] (F⁻¹[Q, Q])⁻¹ w_Q. For one value that is the paper's
        w - w_q F⁻¹ e_q / [F⁻¹]_qq. Solved in float64; 2/3 B³ + 4 B² FLOPs a block.
        """
        values = self._blocks(weight.detach()).double()
        removed = ~self._blocks(mask, fill=1).bool()
        inverse = self.inverse.double()
        # F⁻¹[Q, Q] in its places and the identity elsewhere, as sizes of Q differ between blocks
        both = removed.unsqueeze(2) & removed.unsqueeze(1)
        system = torch.where(both, inverse, torch.eye(self._size, device=inverse.device).double())
        pulls = torch.linalg.solve(system, (values * removed).unsqueeze(2))
        moved = values - (inverse @ pulls).squeeze(2)
        self._bill(2 / 3 * self._size**3 + 4 * self._size**2)
        return self._unblocked(moved.masked_fill(removed, 0.0)).to(weight.dtype)

    def _blocks(self, values: Tensor, *, fill: float = 0.0) -> Tensor:
        """[blocks, B] of a tensor of the weight's shape."""
        flat = values.detach().flatten()
        spare = -len(flat) % self._size
        return F.pad(flat, (0, spare), value=fill).view(-1, self._size)

    def _unblocked(self, blocks: Tensor) -> Tensor:
        return blocks.flatten()[: self._shape.numel()].view(self._shape)

    def _bill(self, flops: float) -> None:
        self.flops += flops * len(self.inverse)
