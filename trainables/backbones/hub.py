"""Pretrained weights from timm's hub, which is given up soon where it does not answer."""

from collections.abc import Mapping
from typing import Any

import huggingface_hub
import timm
from huggingface_hub.errors import RemoteEntryNotFoundError
from torch import Tensor

PATIENCE_SECONDS = 10
"""Time that the hub may take to answer at all."""
_FILES = ("model.safetensors", "pytorch_model.bin")


def hub_weights(name: str, args: Mapping[str, Any]) -> dict[str, Tensor]:
    """The state dict of timm's pretrained model `name`, made with the constructor's `args`.

    The weights come from the hub's cache on this machine where it has them. Raises whatever the
    client raises: an `OSError`, or its HTTP library's own errors.
    """
    _knock(name)
    weights: dict[str, Tensor] = timm.create_model(name, pretrained=True, **args).state_dict()
    return weights


def _knock(name: str) -> None:
    """Raises at once if the hub must be asked for the weights and does not answer.

    Without this the client retries each of the file's possible names for half a minute.
    """
    config = timm.get_pretrained_cfg(name)
    if config is None or not config.hf_hub_id:
        return
    repository, _, revision = config.hf_hub_id.partition("@")
    cached = (
        huggingface_hub.try_to_load_from_cache(repository, file, revision=revision or None)
        for file in _FILES
    )
    if any(isinstance(path, str) for path in cached):
        return
    url = huggingface_hub.hf_hub_url(repository, _FILES[0], revision=revision or None)
    try:
        huggingface_hub.get_hf_file_metadata(url, timeout=PATIENCE_SECONDS)
    except RemoteEntryNotFoundError:
        return  # it answers; timm knows the other names the file may have
