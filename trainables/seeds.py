"""Seeds derived from a sweep's seed, so that every stream of randomness is its own and repeats."""

import hashlib
import json

import torch


def derive_seed(*parts: int | str) -> int:
    """A seed in [0, 2**63) that depends on all parts and their order, on every machine alike."""
    digest = hashlib.sha256(json.dumps(parts).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def generator(*parts: int | str, device: torch.device | str = "cpu") -> torch.Generator:
    """A generator at the start of the stream that the parts name."""
    return torch.Generator(device=device).manual_seed(derive_seed(*parts))
