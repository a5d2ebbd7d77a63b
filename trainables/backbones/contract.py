"""The contract of a backbone: RGB images in, one tensor of logits out, in either mode."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from trainables.backbones.modes import Mode, in_mode
from trainables.backbones.skeleton import float_dtype, meta_copy, structure_key
from trainables.errors import InputError
from trainables.remembered import Remembered

_IMAGES = 2
_OTHER_CHANNELS = (1, 2, 4, 6, 12)
_OTHER_RESOLUTIONS = (32, 64, 128, 224, 256, 384)
_kept = Remembered[None](size=64)


def check_contract(model: nn.Module, *, classes: int, resolution: int) -> None:
    """Raises `InputError` unless `model` gives logits [images, classes], when training too.

    Tried on the meta device, once per process for equal structures; the model is left alone.
    """
    key = structure_key(model, resolution=resolution), classes
    _kept.get(key, lambda: _check(model, classes=classes, resolution=resolution))


def refusal(model: nn.Module, *, resolution: int) -> str:
    """The likeliest reason, as a clause with its mend, why `model` does not run on the meta device.

    A model for images of other channels or of another size is told by trying.
    """
    for channels in _OTHER_CHANNELS:
        if _runs(model, channels=channels, resolution=resolution):
            counted = "1 channel" if channels == 1 else f"{channels} channels"
            return (
                f"it takes images of {counted}, and images here have 3 channels (RGB), so make it "
                "for 3, as backbone.args: {in_chans: 3} does for timm's models"
            )
    for other in _OTHER_RESOLUTIONS:
        if other != resolution and _runs(model, channels=3, resolution=other):
            return f"it does run at {other} pixels, so give it images of a size that it accepts"
    return (
        "a model must run on tensors that have shapes but no values (device 'meta'), so it must "
        "not read values or hold tensors that are neither parameters nor buffers"
    )


def _check(model: nn.Module, *, classes: int, resolution: int) -> None:
    kind = type(model).__name__
    for mode in Mode:
        try:
            output = _outputs(model, mode, channels=3, resolution=resolution)
        except Exception as error:  # whatever a user's forward may raise
            raise InputError(
                f"{kind} at {resolution} pixels does not run in {mode} mode: "
                f"{type(error).__name__}: {error}; {refusal(model, resolution=resolution)}."
            ) from error
        if not isinstance(output, Tensor):
            raise InputError(
                f"{kind} returns {_told(output)} in {mode} mode, and a backbone must return its "
                "logits alone, a tensor [images, classes]; give a factory that wraps it."
            )
        if tuple(output.shape) != (_IMAGES, classes):
            raise InputError(
                f"{kind} returns logits of shape {list(output.shape)} for {_IMAGES} images and "
                f"{classes} classes in {mode} mode, and they must be [images, classes]; give a "
                "factory that flattens them and heeds num_classes."
            )


def _runs(model: nn.Module, *, channels: int, resolution: int) -> bool:
    try:
        _outputs(model, Mode.EVAL, channels=channels, resolution=resolution)
    except Exception:  # whatever a user's forward may raise
        return False
    return True


def _outputs(model: nn.Module, mode: Mode, *, channels: int, resolution: int) -> Any:
    with torch.inference_mode(mode=False), torch.no_grad():
        skeleton = in_mode(meta_copy(model), mode)
        shape = (_IMAGES, channels, resolution, resolution)
        return skeleton(torch.empty(shape, dtype=float_dtype(model), device="meta"))


def _told(output: Any) -> str:
    """Names the result of a forward in a few words."""
    kind = type(output).__name__
    if isinstance(output, Mapping):
        return f"a {kind} ({', '.join(map(str, output))})"
    if isinstance(output, list | tuple):
        return f"a {kind} of {len(output)}"
    return f"a {kind}"
