"""Backbones: a timm name or a user's own factory, and where its weights come from."""

import difflib
import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
from torch import nn

from trainables.backbones.hub import hub_weights
from trainables.backbones.layers import classifier, classifier_name, is_within
from trainables.backbones.source import BackboneSource
from trainables.backbones.state import (
    Weights,
    load_weights_into,
    read_weights,
    versions_of,
    with_versions,
)
from trainables.errors import InputError, first_line

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

Channels = tuple[float, float, float]


@dataclass(frozen=True, kw_only=True)
class Backbone:
    """A backbone ready to be copied by trials: its source and its weights in memory."""

    source: BackboneSource
    weights: Weights | None


def build(source: BackboneSource, *, num_classes: int) -> nn.Module:
    """A model of the source's architecture, randomly initialised, with a head of `num_classes`.

    Raises `InputError` when the name is unknown, the constructor refuses its arguments, or what
    it returns is no module with a classifier of so many outputs.
    """
    factory = _factory(source.model)
    try:
        model: object = factory(num_classes=num_classes, **source.args)
    except Exception as error:  # whatever a model's constructor may raise
        raise InputError(
            f"backbone.model={source.model!r} cannot be built with num_classes={num_classes} and "
            f"backbone.args={dict(source.args)!r} ({_reason(error)}); mend backbone.args."
        ) from error
    if not isinstance(model, nn.Module):
        raise InputError(
            f"backbone.model={source.model!r} returned a {type(model).__name__}; "
            "a factory must return a torch.nn.Module."
        )
    outputs = _outputs(classifier(model))
    if outputs not in (None, num_classes):
        raise InputError(
            f"backbone.model={source.model!r} was asked for {num_classes} classes and has a head "
            f"of {outputs}; the factory must use its argument num_classes."
        )
    return model


def load_weights(source: BackboneSource) -> Weights | None:
    """The source's state dict on the CPU in float32, or None for random weights.

    Raises `InputError` when the file or the hub cannot be read.
    """
    if source.weights is None:
        return None
    if source.weights == "hub":
        return _from_hub(source)
    path = Path(source.weights).expanduser()
    if not path.is_file():
        raise InputError(
            f"backbone.weights={source.weights!r} is no file; give a local safetensors or "
            "state-dict file, `hub` for timm's hub, or leave it out to start from random weights."
        )
    try:
        tensors = read_weights(path)
    except Exception as error:  # two formats and pickle, each with errors of its own
        raise InputError(
            f"backbone.weights={source.weights!r} cannot be read as safetensors or as a state "
            f"dict ({_reason(error)}); save the model's state_dict() again."
        ) from error
    if not tensors:
        raise InputError(
            f"backbone.weights={source.weights!r} holds no tensors; save the model's state_dict(), "
            "alone or under the key 'state_dict'."
        )
    floats = {n: v.float() if v.is_floating_point() else v for n, v in tensors.items()}
    return with_versions(floats, versions_of(tensors))


def load_into(model: nn.Module, weights: Weights, *, source: BackboneSource) -> None:
    """Copies pretrained weights into `model`, all but the head, which stays as it is.

    Raises `InputError` naming the first tensor that does not fit, and leaves `model` alone then.
    """
    head = classifier_name(model)
    own = {name: value for name, value in model.state_dict().items() if not is_within(name, head)}
    if misfits := _misfits(own, {n: v for n, v in weights.items() if not is_within(n, head)}):
        count = "1 tensor differs" if len(misfits) == 1 else f"{len(misfits)} tensors differ"
        raise InputError(
            f"backbone.weights={source.weights!r} does not fit {source.model}: {misfits[0]} "
            f"({count}); give the backbone.model and the backbone.args that it was trained with."
        )
    _copy(model, {n: weights[n] for n in own if n in weights}, weights, source=source)


def load_head(model: nn.Module, weights: Weights) -> None:
    """Copies the pretrained classifier into `model`'s, where it is one of the same classes."""
    head = classifier_name(model)
    own = {name: value for name, value in model.state_dict().items() if is_within(name, head)}
    if all(name in weights and weights[name].shape == own[name].shape for name in own):
        head_only = {name: weights[name] for name in own}
        load_weights_into(model, with_versions(head_only, versions_of(weights)), strict=False)


def _copy(model: nn.Module, some: Weights, whole: Weights, *, source: BackboneSource) -> None:
    try:
        load_weights_into(model, with_versions(some, versions_of(whole)), strict=False)
    except Exception as error:  # whatever a module says of a version that it does not read
        raise InputError(
            f"backbone.weights={source.weights!r} cannot be loaded into {source.model} "
            f"({_reason(error)}); save the state dict again with the version that is installed."
        ) from error


def normalisation(source: BackboneSource, model: nn.Module) -> tuple[Channels, Channels]:
    """Channel means and deviations (0-1) that the backbone's inputs are normalised by."""
    own: Mapping[str, Any] = getattr(model, "pretrained_cfg", None) or {}
    mean = source.mean or own.get("mean") or IMAGENET_MEAN
    std = source.std or own.get("std") or IMAGENET_STD
    return (mean[0], mean[1], mean[2]), (std[0], std[1], std[2])


def _factory(name: str) -> Callable[..., object]:
    if ":" in name:
        return _users_factory(name)
    if timm.is_model(name):
        return lambda **arguments: timm.create_model(name, pretrained=False, **arguments)
    near = difflib.get_close_matches(name.partition(".")[0], timm.list_models(), n=3)
    hint = f"did you mean {', '.join(near)}?" if near else "timm.list_models() names them all."
    raise InputError(
        f"backbone.model={name!r} is neither a timm model nor a module:factory; {hint}"
    )


def _users_factory(name: str) -> Callable[..., object]:
    module_name, _, attribute = name.partition(":")
    try:
        found: object = getattr(importlib.import_module(module_name), attribute)
    except Exception as error:  # whatever a user's module does while it is imported
        raise InputError(
            f"backbone.model={name!r} cannot be imported ({_reason(error)}); it must name a "
            "callable as module:factory, importable from the folder the command is started in."
        ) from error
    if not callable(found):
        raise InputError(
            f"backbone.model={name!r} names a {type(found).__name__}, and must name a callable "
            "that takes num_classes and returns a torch.nn.Module."
        )
    return found


def _from_hub(source: BackboneSource) -> Weights:
    if ":" in source.model:
        raise InputError(
            f"backbone.weights='hub' needs a timm model, and backbone.model={source.model!r} is a "
            "factory; give backbone.weights a local safetensors or state-dict file."
        )
    _factory(source.model)  # an unknown name is not the hub's fault
    try:
        return hub_weights(source.model, source.args)
    except Exception as error:  # the client lets its HTTP library's own errors through
        raise InputError(
            f"The pretrained weights of {source.model} could not be had from timm's hub "
            f"({_reason(error)}); give backbone.weights a local safetensors or state-dict file, "
            "or run where the hub can be reached."
        ) from error


def _misfits(own: Weights, given: Weights) -> list[str]:
    """Reasons why the state dict `given` does not fit the state dict `own`, the telling first."""
    reshaped = [
        f"{name} is {tuple(given[name].shape)} in the file and {tuple(mine.shape)} in the model"
        for name, mine in own.items()
        if name in given and mine.shape != given[name].shape
    ]
    missing = [
        f"the model's {name} is not in the file"
        for name in own
        if name not in given and not name.endswith("num_batches_tracked")
    ]
    unexpected = [f"the file's {name} is not in the model" for name in given if name not in own]
    return [*reshaped, *missing, *unexpected]


def _outputs(head: nn.Module) -> int | None:
    """Number of classes that a head tells apart; None where it does not say."""
    for attribute in ("out_features", "out_channels"):
        if isinstance(outputs := getattr(head, attribute, None), int):
            return outputs
    return None


def _reason(error: Exception) -> str:
    """The error's kind and the first line of its message."""
    return f"{type(error).__name__}: {first_line(error)}"
