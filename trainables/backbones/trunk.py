"""The trunk: a model below its classifier, whose outputs are features while it is frozen."""

import copy
import hashlib
import json
from dataclasses import dataclass
from itertools import chain

import torch
from torch import Tensor, nn

from trainables.backbones.layers import classifier, classifier_name, is_within
from trainables.seeds import generator

_TOLERANCE = 1e-4  # relative to the largest value; kernels may differ between two calls
_PROBE_IMAGES = 2


@dataclass(frozen=True, kw_only=True)
class FrozenTrunk:
    """A model of which nothing but the classifier is trained, seen as features and a head.

    The features are what the classifier takes: pooled maps, as a vector for a linear head and as
    [C, 1, 1] for a convolution.
    """

    model: nn.Module
    """The whole model, set to train as the recipe says."""
    feature_shape: tuple[int, ...]
    """Shape of one image's features."""

    @property
    def head(self) -> nn.Module:
        return classifier(self.model)

    @torch.no_grad()
    def features(self, inputs: Tensor) -> Tensor:
        """Features [B, *feature_shape] of normalised images [B, 3, r, r], on their device."""

        def leave(_head: nn.Module, arguments: tuple[Tensor, ...]) -> None:
            raise _HeadReachedError(arguments[0])

        hook = self.head.register_forward_pre_hook(leave)
        try:
            self.model(inputs)
        except _HeadReachedError as reached:
            return reached.features
        finally:
            hook.remove()
        raise RuntimeError("The classifier was not reached, though find_trunk() had seen it be.")

    def fingerprint(self) -> str:
        """Hex digits that depend on the modules of the trunk and on every value in them."""
        head = classifier_name(self.model)
        digest = hashlib.sha256(_modules(self.model, without=head).encode())
        for name, tensor in chain(self.model.named_parameters(), self.model.named_buffers()):
            if not is_within(name, head):
                digest.update(json.dumps([name, str(tensor.dtype), tensor.shape]).encode())
                digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()


def find_trunk(model: nn.Module, *, resolution: int) -> FrozenTrunk | None:
    """The trunk of `model`, if training its classifier on features is training the model.

    That is so where only the classifier is trained and where, tried on noise, it is called once
    with one tensor, gives the model's logits, and is given the same in training mode as in eval
    mode. A dropout before the head, or a batch norm without weights, which goes on following its
    images, changes what the head is given: None then. `model` must have been frozen and set to
    training mode. What is tried is a copy and no training compute, as the proof of a pruning is.
    """
    head = classifier_name(model)
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    if not trained or not all(is_within(name, head) for name in trained):
        return None
    probe = copy.deepcopy(model)  # a pass in training mode may move statistics
    device = next(model.parameters()).device
    shape = (_PROBE_IMAGES, 3, resolution, resolution)
    noise = torch.randn(shape, generator=generator("trunk")).to(device)
    calls: list[tuple[Tensor, ...]] = []
    classifier(probe).register_forward_pre_hook(lambda _, arguments: calls.append(arguments))
    with torch.no_grad():
        probe(noise)
        logits = probe.eval()(noise)
        if [len(arguments) for arguments in calls] != [1, 1]:
            return None
        (in_training,), (features,) = calls
        from_features = classifier(probe)(features)
    if not _close(in_training, features) or not _close(from_features.flatten(1), logits):
        return None
    return FrozenTrunk(model=model, feature_shape=tuple(features.shape[1:]))


class _HeadReachedError(Exception):
    """Ends a forward pass early; it never leaves this module."""

    def __init__(self, features: Tensor) -> None:
        super().__init__()
        self.features = features


def _modules(model: nn.Module, *, without: str) -> str:
    """The modules' kinds and plain settings, as strides and activations are."""
    return "\n".join(
        f"{name}: {type(module).__qualname__}({module.extra_repr()})"
        for name, module in model.named_modules()
        if not is_within(name, without)
    )


def _close(one: Tensor, other: Tensor) -> bool:
    if one.shape != other.shape:
        return False
    scale = float(other.abs().max())
    return torch.allclose(one, other, rtol=0.0, atol=_TOLERANCE * scale)
