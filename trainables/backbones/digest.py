"""The digest of a backbone's weights, by which changed ones are known."""

import hashlib
import json

import torch

from trainables.backbones.state import Weights


def weights_digest(weights: Weights | None) -> str | None:
    """Returns hex digits that change with every name, shape and value; None for random weights."""
    if weights is None:
        return None
    digest = hashlib.sha256()
    for name, tensor in sorted(weights.items()):
        digest.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
        digest.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
