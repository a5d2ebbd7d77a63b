"""Batch norms: which of them follow the images, and how their statistics are made anew.

Changed weights change what reaches each batch norm, so that its running statistics no longer fit.
Passing a few hundred images forward sets them right, which helps most where norms stay frozen or
training is short.
"""

from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn

from trainables.backbones.modes import eval_mode
from trainables.learning.parts_that_fit import in_parts_that_fit


def trained_batch_norms(model: nn.Module) -> tuple[str, ...]:
    """Names of the batch norms that are in train mode and so normalise by the batch they see."""
    return tuple(
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.training
    )


def reestimate_batch_norm(
    model: nn.Module, batches: Iterable[Tensor], *, only: Collection[str] | None = None
) -> int:
    """Replaces the running statistics of batch norms; returns the number of images used.

    All batch norms of the model, or `only` those of these qualified names.

    `batches` are images [n, channels, height, width] on the model's device, normalised as in
    training and not augmented. Statistics are the plain average over batches; only batch norms are
    in train mode during the pass, so dropout is off, and every mode and momentum is as before
    afterwards. The cost is the returned number × one image's forward pass. A model without batch
    norms costs nothing: no batch is drawn and 0 returned. Without any batch nothing changes.

    A batch of one image is left out, because it has no variance where maps have shrunk to one
    pixel. A batch that does not fit into memory is halved until it does.
    """
    norms = [
        module
        for name, module in model.named_modules()
        if isinstance(module, nn.modules.batchnorm._BatchNorm)
        and module.track_running_stats
        and (only is None or name in only)
    ]
    if not norms:
        return 0
    images_used = 0
    with torch.no_grad(), _only_in_train_mode(model, norms):
        for images in batches:
            if len(images) < 2:
                continue
            if images_used == 0:
                for norm in norms:
                    norm.reset_running_stats()
            observe = partial(_observe, model, norms, images)
            images_used += sum(
                in_parts_that_fit(observe, len(images), part=len(images), smallest=2)
            )
    return images_used


def _observe(
    model: nn.Module, norms: list[nn.modules.batchnorm._BatchNorm], images: Tensor, rows: slice
) -> int:
    """Passes `rows` of `images` forward, of which norms keep nothing if the last is not reached.

    Returns how many were used, which are none where it is one.
    """
    batch = images[rows]
    if len(batch) < 2:
        return 0
    before = [[buffer.clone() for buffer in norm.buffers()] for norm in norms]
    try:
        model(batch)
    except torch.OutOfMemoryError:
        for norm, buffers in zip(norms, before, strict=True):
            for buffer, value in zip(norm.buffers(), buffers, strict=True):
                buffer.copy_(value)
        raise
    return len(batch)


@contextmanager
def _only_in_train_mode(
    model: nn.Module, norms: list[nn.modules.batchnorm._BatchNorm]
) -> Iterator[None]:
    momenta = [norm.momentum for norm in norms]
    with eval_mode(model):
        for norm in norms:
            norm.train()
            norm.momentum = None  # cumulative average
        try:
            yield
        finally:
            for norm, momentum in zip(norms, momenta, strict=True):
                norm.momentum = momentum
